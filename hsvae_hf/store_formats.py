"""What stores of sparse vectors take, and codes in that form: lines of text, columns of Arrow.

Each limit is that of the store's documentation or source, which stands beside it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

FIELD = "code"  # of a point, row or document: its code
_PLAIN_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,62}"
_INDEX_NAME = r"[a-z0-9][a-z0-9_.-]{0,254}"
_NORMAL = float(np.finfo(np.float32).tiny)
_TERM_BYTES = 32_766  # of Lucene's IndexWriter.MAX_TERM_LENGTH


@dataclass(frozen=True)
class Store:
    """What a store takes.

    Args:
        title: its name in errors.
        suffixes: of the files that are written for it.
        signed: whether values may be negative, in what is stored and in a query.
        dimensions: how many dimensions it can number; None for any.
        nonzeros: the most non-zeros of a row; None for any.
        smallest: the smallest value that it takes.
        largest_weight: the largest value of a query.
        named: whether its dimensions are words.
        integers: whether its values are whole numbers.
        empty: whether it takes a row without a non-zero, and a query without one.
        name: of a collection, table or index, as a regular expression.
    """

    title: str
    suffixes: tuple[str, ...] = ()
    signed: bool = True
    dimensions: int | None = None
    nonzeros: int | None = None
    smallest: float = 0.0
    largest_weight: float = float("inf")
    named: bool = False
    integers: bool = False
    empty: bool = True
    name: str = ".+"


STORES = {
    # indices are uint32; empty vectors are taken (qdrant_client.local.sparse, local_collection)
    "qdrant": Store("Qdrant", (".jsonl",), dimensions=2**32, name=r"[^/\\]{1,255}"),
    # index below 2^32 - 1, values not negative, none empty (pymilvus.bulk_writer.validators, milvus_lite.schema.sparse)
    "milvus": Store("Milvus", (".db",), signed=False, dimensions=2**32 - 1, empty=False, name=_PLAIN_NAME),
    # SPARSEVEC_MAX_DIM and SPARSEVEC_MAX_NNZ of sparsevec.h; HNSW_MAX_NNZ is HNSW_NONZEROS below
    "pgvector": Store("pgvector", (".copy", ".tsv"), dimensions=10**9, nonzeros=16_000, name=_PLAIN_NAME),
    # "strictly positive", no dots (SparseVectorFieldMapper); values are normal floats (Lucene's FeatureField)
    "elasticsearch": Store(
        "Elasticsearch", (".ndjson", ".jsonl"), signed=False, smallest=_NORMAL, named=True, name=_INDEX_NAME
    ),
    # the same of `rank_features`; `neural_sparse` builds FeatureField.newLinearQuery, whose weight is at most 64
    "opensearch": Store(
        "OpenSearch",
        (".ndjson", ".jsonl"),
        signed=False,
        smallest=_NORMAL,
        largest_weight=64.0,
        named=True,
        name=_INDEX_NAME,
    ),
    # JsonVectorCollection repeats each term as often as its weight says; a document without terms is not indexed
    "anserini": Store("Anserini", (".jsonl", ".json"), signed=False, named=True, integers=True, empty=False),
    "dicts": Store("dictionaries", (".jsonl",)),
    "arrow": Store("Arrow", (".parquet", ".arrow"), dimensions=2**32),
}
HNSW_NONZEROS = 1000  # HNSW_MAX_NNZ of pgvector's hnsw.h


@dataclass(frozen=True)
class Batch:
    """Some rows as they are stored: `codes` `(rows, dimensions)`, canonical, an id each, and a text each or None."""

    ids: Sequence[int | str]
    codes: sparse.csr_matrix
    texts: Sequence[str] | None

    def rows(self) -> Iterator[tuple[int | str, list[int], list[float], str | None]]:
        """Of each row its id, indices in ascending order, values and text."""
        numbers = short_numbers(self.codes.data)
        for row, (start, end) in enumerate(pairwise(self.codes.indptr.tolist())):
            text = None if self.texts is None else self.texts[row]
            yield self.ids[row], self.codes.indices[start:end].tolist(), numbers[start:end], text


@dataclass(frozen=True)
class Layout:
    """What all rows of one export share.

    Args:
        dimensions: of the codes before a split.
        split: whether negative values have dimensions of their own, after the others.
        values: the type that values have.
        names: of dimensions.
        collection: the name of a collection, table or index.
        string_ids: whether ids are strings.
        texts: whether there are texts.
        index: the kind of index, for pgvector.
        about: what was done to the codes.
    """

    dimensions: int
    split: bool
    values: str = "float32"
    names: Mapping[int | str, str] = field(default_factory=dict)
    collection: str = "codes"
    string_ids: bool = False
    texts: bool = False
    index: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored_dimensions(self) -> int:
        """How many dimensions there are where codes are stored."""
        return self.dimensions * 2 if self.split else self.dimensions

    def term(self, index: int) -> str:
        """The word that stands for a dimension; that of negative values begins with `-`, or is the name of this end."""
        negative, dimension = divmod(index, self.dimensions) if self.split else (0, index)
        end = self.names.get(f"{dimension}{'-' if negative else '+'}")
        return "-" * negative + self.names.get(dimension, str(dimension)) if end is None else end

    def check_terms(self, store: Store, indices: np.ndarray) -> None:
        """Refuse words that the store can't tell apart, or doesn't take.

        Raises:
            ValueError: naming the dimension.
        """
        owners: dict[str, int] = {}
        for index in indices.tolist():
            term = self.term(index)
            bad = not term.strip("-") or len(term.encode()) > _TERM_BYTES
            bad |= any(map(str.isspace, term)) if store.integers else "." in term
            if bad:
                rule = "without spaces" if store.integers else "without dots"
                raise ValueError(
                    f"`names` must be words {rule}, of 1 to {_TERM_BYTES:,} bytes, for {store.title}, got "
                    f"{term[:50]!r} for dimension {index}; rename it."
                )
            if owners.setdefault(term, index) != index:
                raise ValueError(
                    f"`names` must differ, got {term!r} for the dimensions {owners[term]} and {index} (one without a "
                    "name has its number); rename one."
                )


def short_numbers(values: np.ndarray) -> list[float]:
    """Numbers whose text is short and gives the same float32; whole numbers stay.

    >>> short_numbers(np.array([0.1], dtype=np.float32))
    [0.1]
    """
    if values.dtype.kind in "iu":
        return list(values.tolist())
    return [float(str(value)) for value in values]


def sparsevec(indices: Sequence[int], values: Sequence[float], dimensions: int) -> str:
    """The text form of pgvector, `{1:0.5,3:-2.0}/4`: indices from 1 to `dimensions`, ascending.

    >>> sparsevec([0, 2], [0.5, -2.0], 4)
    '{1:0.5,3:-2.0}/4'
    """
    pairs = ",".join(f"{index + 1}:{value}" for index, value in zip(indices, values, strict=True))
    return f"{{{pairs}}}/{dimensions}"


def terms(layout: Layout, indices: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Values by the words of their dimensions."""
    return {layout.term(index): value for index, value in zip(indices, values, strict=True)}


_Line = Callable[[Layout, int | str, list[int], list[float], str | None], str]


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def _qdrant(layout: Layout, identity: int | str, indices: list[int], values: list[float], text: str | None) -> str:
    point = {"id": identity, "vector": {FIELD: {"indices": indices, "values": values}}}
    return _json(point if text is None else {**point, "payload": {"text": text}})


def _pgvector(layout: Layout, identity: int | str, indices: list[int], values: list[float], text: str | None) -> str:
    cells = [_copy_text(str(identity)), sparsevec(indices, values, layout.stored_dimensions)]
    return "\t".join(cells if text is None else [*cells, _copy_text(text)]) + "\n"


def _copy_text(text: str) -> str:
    """Escaped for COPY, whose columns end at a tab and rows at a line feed."""
    for plain, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return text


def _bulk(layout: Layout, identity: int | str, indices: list[int], values: list[float], text: str | None) -> str:
    action = {"index": {"_index": layout.collection, "_id": str(identity)}}
    document: dict[str, Any] = {FIELD: terms(layout, indices, values)}
    return _json(action) + _json(document if text is None else {**document, "text": text})


def _anserini(layout: Layout, identity: int | str, indices: list[int], values: list[float], text: str | None) -> str:
    document = {"id": str(identity)} if text is None else {"id": str(identity), "contents": text}
    return _json({**document, "vector": terms(layout, indices, values)})


def _dicts(layout: Layout, identity: int | str, indices: list[int], values: list[float], text: str | None) -> str:
    row = {"id": identity, FIELD: dict(zip(indices, values, strict=True))}
    return _json(row if text is None else {**row, "text": text})


_LINES: dict[str, _Line] = {
    "qdrant": _qdrant,
    "pgvector": _pgvector,
    "elasticsearch": _bulk,
    "opensearch": _bulk,
    "anserini": _anserini,
    "dicts": _dicts,
}


def write_file(path: Path, suffix: str, form: str, batches: Iterator[Batch], layout: Layout) -> None:
    """Write rows to a new file.

    Args:
        path: where to write.
        suffix: of the file's final name.
        form: a name of `STORES`.
        batches: the rows.
        layout: what they share.
    """
    if form == "arrow":
        _write_arrow(path, suffix, batches, layout)
        return
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in batches:
            file.writelines(_LINES[form](layout, *row) for row in batch.rows())


def _write_arrow(path: Path, suffix: str, batches: Iterator[Batch], layout: Layout) -> None:
    columns: dict[str, Any] = {
        "id": pa.string() if layout.string_ids else pa.int64(),
        "indices": pa.list_(pa.uint32()),
        "values": pa.list_(pa.type_for_alias(layout.values)),
    }
    if layout.texts:
        columns["text"] = pa.string()
    schema = pa.schema(columns, metadata={"hsvae_hf": json.dumps(layout.about)})
    with pq.ParquetWriter(path, schema) if suffix == ".parquet" else pa.ipc.new_file(path, schema) as writer:
        for batch in batches:
            indptr = pa.array(batch.codes.indptr, pa.int32())
            indices = pa.array(batch.codes.indices.astype(np.uint32))
            arrays = [
                pa.array(list(batch.ids), columns["id"]),
                pa.ListArray.from_arrays(indptr, indices),
                pa.ListArray.from_arrays(indptr, pa.array(batch.codes.data)),
            ]
            if batch.texts is not None:
                arrays.append(pa.array(batch.texts, pa.string()))
            writer.write_table(pa.table(arrays, schema=schema))
