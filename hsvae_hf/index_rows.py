"""Rows of an index: a block of them, checked and scaled, as a segment."""

from typing import Any

import pyarrow as pa
from scipy import sparse

from hsvae_hf.encoding import at_length_one
from hsvae_hf.index_blocks import Block
from hsvae_hf.index_checks import as_strings, as_vectors, check_half
from hsvae_hf.index_encoders import IndexEncoder
from hsvae_hf.index_files import Manifest
from hsvae_hf.index_segments import Segment, forward_arrays, vector_arrays


def make_segment(
    block: Block, ids: pa.Array, settings: Manifest, encoder: IndexEncoder, vector_size: int | None
) -> Segment:
    """Rows as a segment.

    Args:
        block: of rows.
        ids: of the same rows.
        settings: of the index.
        encoder: likewise.
        vector_size: numbers of the vectors that the index keeps already.

    Raises:
        ValueError: if texts, vectors or values are not such as the index takes.
    """
    count = len(block)
    text: Any = pa.nulls(count, pa.string()) if block.texts is None else as_strings(block.texts, "texts", count)
    kept = {}
    if settings.keep == "vectors":
        if block.vectors is None:
            raise ValueError('`vectors` must be given for `keep="vectors"`, got none; pass those of the rows.')
        kept = vector_arrays(as_vectors(block.vectors, count, vector_size), settings.vector_precision)
    if settings.keep == "codes":
        kept = forward_arrays(encoder.decodable(block.codes), settings.precision)
    codes = scaled(block.codes, settings.similarity)
    if settings.precision == "float16":
        check_half(codes)
    return Segment.build(codes, pa.table({"id": ids, "text": text}), kept, settings.precision)


def scaled(codes: sparse.csr_matrix, similarity: str) -> sparse.csr_matrix:
    """Codes at length 1 where they are compared by cosine; an empty code stays empty."""
    return codes if similarity == "dot" else at_length_one(codes)
