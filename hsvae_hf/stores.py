"""`export`: codes into vector databases and search engines; `export_query`: what to ask them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from hsvae_hf.dimension_names import DimensionNames
from hsvae_hf.files import staged_file
from hsvae_hf.input_checks import check_switch
from hsvae_hf.store_checks import (
    check_ids,
    check_limits,
    check_names,
    check_options,
    check_query,
    check_target,
    check_texts,
    survey,
)
from hsvae_hf.store_clients import check_client, is_client, milvus_file, send
from hsvae_hf.store_codings import STEPS, Coding, both_signs, canonical, quantized, read_again, read_blocks, scale_of
from hsvae_hf.store_formats import (
    FIELD,
    HNSW_NONZEROS,
    Batch,
    Layout,
    Store,
    short_numbers,
    sparsevec,
    terms,
    write_file,
)

_BATCH = 512  # rows that a client sends together, fewer where they have many non-zeros:
_NONZEROS = 200_000  # as JSON some 6 MB; Qdrant takes 32 at a time


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote, and what it did to the codes.

    Args:
        format: the store.
        rows: written.
        nonzeros: written.
        dimensions: that the store sees; twice those of the codes after a split.
        nonnegative: what was done to negative values.
        negatives: how many there were, of the non-zeros that `max_active_dims` leaves.
        neighbors_lost: share of the ten nearest rows by signed cosine that a search finds no more, 0 to 1, on the first
            2,000 rows (see `nonnegative_loss`). None if nothing is lost: no value was negative, or the store takes
            negative weights in a query, so that `export_query` undoes a split.
        quantize: the type of whole numbers, or None.
        scale: what a whole number 1 stands for; None without quantisation.
        rounded_to_zero: non-zeros that the quantisation lost.
        empty: rows without a non-zero that were written.
        skipped: numbers of rows without a non-zero that were left out, since the store refuses them.
    """

    format: str
    rows: int
    nonzeros: int
    dimensions: int
    nonnegative: str
    negatives: int
    neighbors_lost: float | None
    quantize: str | None
    scale: float | None
    rounded_to_zero: int
    empty: int
    skipped: list[int]


def export(
    codes: Any,
    target: Any,
    format: str,
    *,
    ids: Sequence[int] | Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    nonnegative: str | None = None,
    normalize: bool = False,
    max_active_dims: int | None = None,
    quantize: str | None = None,
    names: Mapping[int, str] | Mapping[str, str] | DimensionNames | None = None,
    name: str = "codes",
    index: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write codes for a store of sparse vectors, to a file or through its client.

    All codes are read and checked before anything is written: against NaN, and against the limits of the store. A file
    then appears whole or not at all. PostgreSQL takes all rows in one transaction, which is rolled back on a failure;
    pass a connection without an open one. In Qdrant and Milvus a new collection is removed again if sending fails,
    but one that `overwrite` replaced is gone, and a process that is killed leaves what it had sent.

    | format | target | negative values | rows without a non-zero |
    | --- | --- | --- | --- |
    | `"qdrant"` | `.jsonl` of points, or a `QdrantClient` | kept | kept, never found |
    | `"milvus"` | `.db` of milvus-lite, or a `MilvusClient` | refused | skipped |
    | `"pgvector"` | `.copy` or `.tsv` for COPY, or a connection (psycopg, pg8000) | kept | kept |
    | `"elasticsearch"` | `.ndjson` or `.jsonl` for `_bulk`, a field `sparse_vector` | refused | kept, never found |
    | `"opensearch"` | the same, a field `rank_features` | refused | kept, never found |
    | `"anserini"` | `.jsonl` or `.json` of JsonVectorCollection | refused | skipped |
    | `"dicts"` | `.jsonl`, or a list to which `{index: value}` are appended | kept | kept |
    | `"arrow"` | `.parquet` or `.arrow`: lists of uint32 and float32 | kept | kept |

    A file for COPY goes into a table of `id bigint, code sparsevec(dimensions)`, and `text text` if there are texts.
    Everywhere the code is in `code` (in Arrow: `indices` and `values`), the text in `text` (Anserini:
    `contents`). Elasticsearch and OpenSearch keep 9 significant bits of a value. New indices of Elasticsearch drop
    frequent dimensions of small weight unless the mapping says `"index_options": {"prune": false}`.

    Args:
        codes: `(rows, latent_size)`, any sparse matrix of scipy, the view of `load_codes`, or an iterable of such
            blocks, as `encode_stream` gives. One that can be read only once is kept in a temporary folder meanwhile, so
            that memory does not grow with it. Duplicate entries are summed, zeros dropped; the codes themselves are
            left as they are.
        target: see the table.
        format: see the table.
        ids: one for each row, all whole numbers or all strings, each once; None numbers rows from 0. Strings for Qdrant
            are UUIDs.
        texts: one for each row, stored beside the code.
        nonnegative: `"split"` gives each dimension a second one, `latent_size` later, for its negative values, negated.
            `"abs"` stores magnitudes. `"none"` keeps signs, or refuses negative values where the store does. None is
            `"split"` where the store refuses them, else `"none"`.
        normalize: divide what is left of a row by its length, so that the inner product is the cosine.
        max_active_dims: keep so many non-zeros of each row, the largest magnitudes (>= 1).
        quantize: `"int8"` (-127 to 127) or `"uint8"` (0 to 255, for codes without negative values): whole numbers with
            one scale for all codes, the largest magnitude on the largest number. None is `"uint8"` for Anserini, else
            no quantisation. The report has the scale. As JSON so do the metadata of Arrow (`hsvae_hf`) and of a
            collection of Qdrant, the description of one of Milvus (milvus-lite keeps none) and the comment on a table;
            files of text have no place for it.
        names: `DimensionNames`, or words for dimensions, `{3: "sport"}`, or for their ends, `{"3+": "sport"}`, where
            the store has words (Elasticsearch, OpenSearch, Anserini); other dimensions are called by their number. That
            of negative values after a split begins with `-`.
        name: of the collection, table or index.
        index: for pgvector, `"hnsw"` holds the codes to 1,000 non-zeros and, through a connection, builds that index
            for inner products.
        overwrite: replace a file, collection or table.

    Returns:
        What was written.

    Raises:
        ImportError: if the package of a client is not installed.
        ValueError: if an option is out of range, or codes, ids, texts or names are what the store does not take.

    >>> codes = sparse.csr_matrix([[0.5, 0.0, -2.0], [0.0, 1.0, 0.0]])
    >>> rows = []
    >>> export(codes, rows, "dicts", nonnegative="split").dimensions
    6
    >>> rows
    [{0: 0.5, 5: 2.0}, {1: 1.0}]
    """
    store, coding = check_options(format, nonnegative, normalize, max_active_dims, quantize)
    check_switch(overwrite=overwrite)
    words = _plain(names)
    check_names(store, words, name, index)
    path = check_target(store, format, target, overwrite, ids is not None or texts is not None)
    with ExitStack() as stack:
        if format == "milvus" and path:
            target, path = stack.enter_context(milvus_file(path)), None
        if is_client(format, target):
            check_client(format, target, name, overwrite)
        unfinished = stack.enter_context(staged_file(path, "target")) if path else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=unfinished and unfinished.parent)))
        nonzeros = HNSW_NONZEROS if index else store.nonzeros
        seen = survey(read_blocks(codes, folder), store, coding, nonzeros, sized=format == "pgvector")
        identities = check_ids(format, store, ids, seen.rows)
        stored_texts = check_texts(format, texts, seen.rows)
        scale = scale_of(seen.largest, coding.quantize)
        layout = Layout(
            seen.dimensions,
            coding.nonnegative == "split",
            values=coding.quantize or "float32",
            names=words or {},
            collection=name,
            string_ids=bool(identities) and isinstance(identities[0], str),
            texts=texts is not None,
            index=index,
            about=asdict(coding) | {"scale": scale, "latent_size": seen.dimensions},
        )
        if store.named:
            layout.check_terms(store, seen.indices)
        rows = _Rows(store, coding, scale)
        batches = rows.batches(read_again(codes, folder), identities, stored_texts)
        if unfinished and path:
            write_file(unfinished, path.suffix, format, batches, layout)
        elif isinstance(target, list):
            target.extend([dict(zip(row[1], row[2], strict=True)) for batch in batches for row in batch.rows()])
        else:
            send(format, target, batches, layout)
    return ExportReport(
        format,
        rows=rows.written,
        nonzeros=rows.nonzeros,
        dimensions=layout.stored_dimensions,
        nonnegative=coding.nonnegative,
        negatives=seen.negatives,
        neighbors_lost=seen.loss(store, coding),
        quantize=coding.quantize,
        scale=scale,
        rounded_to_zero=rows.rounded_to_zero,
        empty=rows.empty,
        skipped=rows.skipped,
    )


@dataclass
class _Rows:
    """Rows as they are stored, counted as they go."""

    store: Store
    coding: Coding
    scale: float | None
    written: int = 0
    nonzeros: int = 0
    rounded_to_zero: int = 0
    empty: int = 0
    skipped: list[int] = field(default_factory=list)

    def batches(
        self, blocks: Iterator[sparse.csr_matrix], ids: Sequence[int | str], texts: Sequence[str] | None
    ) -> Iterator[Batch]:
        first = 0
        for block in blocks:
            exact = self.coding(block)
            rows = quantized(exact, self.coding.quantize, self.scale or 1.0)
            self.rounded_to_zero += exact.nnz - rows.nnz
            longest = max(1, int(np.diff(rows.indptr).max(initial=0)))
            size = max(1, min(_BATCH, _NONZEROS // longest))
            for start in range(0, rows.shape[0], size):
                part = rows[start : start + size]
                numbers = np.arange(first + start, first + start + part.shape[0])
                full = np.diff(part.indptr) > 0
                if self.store.empty:
                    self.empty += int((~full).sum())
                elif not full.all():
                    self.skipped += numbers[~full].tolist()
                    part, numbers = part[full], numbers[full]
                self.written, self.nonzeros = self.written + part.shape[0], self.nonzeros + part.nnz
                kept = numbers.tolist()
                own_texts = None if texts is None else [texts[row] for row in kept]
                yield Batch([ids[row] for row in kept], part, own_texts)
            first += block.shape[0]


def export_query(
    codes: Any,
    format: str,
    *,
    nonnegative: str | None = None,
    normalize: bool = False,
    max_active_dims: int | None = None,
    names: Mapping[int, str] | Mapping[str, str] | DimensionNames | None = None,
) -> list[Any]:
    """What to send a store to search by codes, one query for each row.

    Against codes that were split, a store that takes negative weights (Qdrant, pgvector) gets `[q, -q]`, and the inner
    product is that of the codes with their signs, exactly. Where it takes none, the query is split as the codes were,
    and dimensions in which the signs differ count as 0 and no longer against each other.

    Args:
        codes: `(rows, latent_size)`, any sparse matrix of scipy.
        format: of `export`.
        nonnegative: as in `export`.
        normalize: divide rows by their length. The order of what is found does not depend on it.
        max_active_dims: keep so many non-zeros of each row, the largest magnitudes (>= 1).
        names: as in `export`.

    Returns:
        For each row: a dictionary of `indices` and `values` for Qdrant (`models.SparseVector(**query)`) and Arrow, a
        dictionary by index for Milvus and `"dicts"`, a text for pgvector, the body of `query` for Elasticsearch and
        OpenSearch, whole numbers by term for Anserini (0 to 255, each row on a scale of its own).

    Raises:
        ValueError: if an option is out of range, a row is what the store does not take, or has no non-zero where terms
            are looked for.

    >>> codes = sparse.csr_matrix([[0.5, 0.0, -2.0]])
    >>> export_query(codes, "pgvector"), export_query(codes, "milvus")
    (['{1:0.5,3:-2.0}/3'], [{0: 0.5, 5: 2.0}])
    >>> export_query(codes, "dicts", nonnegative="split")
    [{0: 0.5, 2: -2.0, 3: -0.5, 5: 2.0}]
    """
    store, coding = check_options(format, nonnegative, normalize, max_active_dims, None)
    words = _plain(names)
    check_names(store, words, "codes", None)
    codes = canonical(codes)
    split = coding.nonnegative == "split"
    rows = both_signs(replace(coding, nonnegative="none")(codes)) if store.signed and split else coding(codes)
    check_limits(rows, 0, store, store.nonzeros, coding)
    check_query(rows, store)
    layout = Layout(codes.shape[1], split, names=words or {})
    if store.named:
        layout.check_terms(store, np.unique(rows.indices))
    queries = []
    for start, end in pairwise(rows.indptr.tolist()):
        indices, values = rows.indices[start:end], rows.data[start:end]
        if store.integers:
            values = np.rint(values * (STEPS["uint8"] / values.max())).astype(np.uint8)
            indices, values = indices[values > 0], values[values > 0]
        queries.append(_query(format, layout, indices.tolist(), short_numbers(values)))
    return queries


def _query(format: str, layout: Layout, indices: Sequence[int], values: Sequence[float]) -> Any:
    if format == "pgvector":
        return sparsevec(indices, values, layout.stored_dimensions)
    if format in ("qdrant", "arrow"):
        return {"indices": list(indices), "values": list(values)}
    if format in ("milvus", "dicts"):
        return dict(zip(indices, values, strict=True))
    weights = terms(layout, indices, values)
    if format == "elasticsearch":
        return {"sparse_vector": {"field": FIELD, "query_vector": weights, "prune": False}}
    if format == "opensearch":
        return {"neural_sparse": {FIELD: {"query_tokens": weights}}}
    return weights


def _plain(names: Any) -> Any:
    """The words of the ends that have some, of `DimensionNames`; other names as they are."""
    if not isinstance(names, DimensionNames):
        return names
    return {end: label for end, label in names.labels.items() if end in names.ends}
