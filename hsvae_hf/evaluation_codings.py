"""Rows of a task as a system codes them, and the scorings that compare two of them.

Two codes are compared under several scorings. The name of the scoring goes before the name of a score:

| scoring | a query and a document |
| --- | --- |
| `cosine`, `dot` | of their codes |
| `decoded` | cosine of the vectors that the decoder makes of both codes |
| `asymmetric` | cosine of the query's dense vector and the document's decoded code |
| `asymmetric_dot` | `D^T x_q . c_d / |D c_d + b|` with a linear decoder: what an inverted index computes, and what
  `hsvae_hf.encode_queries` and `hsvae_hf.code_lengths` are for |
| `asymmetric_top32` | the same with a linear decoder, `(q' . c_d + x_q . b) / |D c_d + b|`, `q' = D^T x_q` cut to 32 |
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from hsvae_hf.encoding import keep_largest
from hsvae_hf.evaluation_scores import Matrix, as_dense, unit
from hsvae_hf.evaluation_systems import Coder


class Coding(NamedTuple):
    """Rows of a task as a system gives them.

    Attributes:
        vectors: of the frozen encoder, `(rows, size)`.
        codes: `(rows, latent_size)`.
        decoded: `(rows, size)`, None where the system can't decode.
        decoder: `D` `(latent_size, size)` and `b` `(size,)` of a linear decoder `c D + b`, None of another.
    """

    vectors: np.ndarray
    codes: Matrix
    decoded: np.ndarray | None = None
    decoder: tuple[np.ndarray, np.ndarray] | None = None

    def take(self, rows: np.ndarray) -> "Coding":
        """Some of the rows."""
        decoded = None if self.decoded is None else self.decoded[rows]
        return Coding(self.vectors[rows], self.codes[rows], decoded, self.decoder)

    @staticmethod
    def join(codings: Sequence["Coding"]) -> "Coding":
        """Rows of several parts, one after the other."""
        if len(codings) == 1:
            return codings[0]
        first = codings[0]
        stack = sparse.vstack if sparse.issparse(first.codes) else np.concatenate
        codes: Matrix = stack([coding.codes for coding in codings])
        decoded = [coding.decoded for coding in codings if coding.decoded is not None]
        vectors = np.concatenate([coding.vectors for coding in codings])
        codes = codes.tocsr() if sparse.issparse(codes) else codes
        return Coding(vectors, codes, np.concatenate(decoded) if decoded else None, first.decoder)


def coding(coder: Coder, vectors: np.ndarray, codes: Matrix) -> Coding:
    """Codes with what their coder can tell of them.

    Args:
        coder: that made the codes.
        vectors: of the same rows, `(rows, size)`.
        codes: `(rows, latent_size)`.
    """
    decode = getattr(coder, "decode", None)
    decoded = None if decode is None else decode(codes)
    if decode is None or decoded is None:
        return Coding(vectors, codes)
    width = codes.shape[1]
    offset = decode(np.zeros((1, width), dtype=np.float32))[0]
    matrix = decode(np.eye(width, dtype=np.float32)) - offset
    linear = np.allclose(as_dense(codes) @ matrix + offset, decoded, rtol=1e-3, atol=1e-3 * np.abs(decoded).max())
    return Coding(vectors, codes, decoded, (matrix, offset) if linear else None)


def sides(queries: Coding, documents: Coding, query_active_dims: Sequence[int]) -> Iterator[tuple[str, Matrix, Matrix]]:
    """What stands on the two sides of each scoring: the dot product of two rows is the similarity.

    Args:
        queries: `(queries, ...)`.
        documents: `(documents, ...)`, of the same system.
        query_active_dims: numbers of dimensions that the query of an asymmetric scoring is cut to; the scoring is left
            out where the decoder is not linear, or a code has fewer dimensions.

    Yields:
        The name of the scoring, the queries' side and the documents' side, of the same width. Of a cut query the last
        column is not a dimension of the code: it holds what is the same for all documents but for their length.
    """
    yield "cosine", unit(queries.codes), unit(documents.codes)
    yield "dot", queries.codes, documents.codes
    if queries.decoded is None or documents.decoded is None:
        return
    decoded = unit(documents.decoded)
    yield "decoded", unit(queries.decoded), decoded
    yield "asymmetric", unit(queries.vectors), decoded
    if documents.decoder is None:
        return
    matrix, offset = documents.decoder
    inverse = 1 / np.maximum(np.linalg.norm(documents.decoded, axis=1, keepdims=True), 1e-6)
    scaled = np.hstack([as_dense(documents.codes) * inverse, inverse]).astype(np.float32)
    vectors = unit(queries.vectors)
    projected, constant = vectors @ matrix.T, vectors @ offset
    yield "asymmetric_dot", projected, scaled[:, :-1]
    for count in query_active_dims:
        if count >= documents.codes.shape[1]:
            continue
        cut = keep_largest(torch.from_numpy(projected), count).numpy()
        yield f"asymmetric_top{count}", np.column_stack([cut, constant]), scaled


def row_products(first: Matrix, second: Matrix) -> np.ndarray:
    """Dot product of each row with the row of the same number, `(rows,)`."""
    if sparse.issparse(first) and sparse.issparse(second):
        return np.asarray(first.multiply(second).sum(axis=1)).ravel()
    return np.asarray((as_dense(first) * as_dense(second)).sum(axis=1))
