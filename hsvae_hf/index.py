"""Index of sparse codes: exact search on one machine, in memory or in a folder that several processes read."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeAlias, cast

import numpy as np
import pyarrow as pa
from scipy import sparse
from torch import Tensor

from hsvae_hf.explanation import Explanation, explain_codes
from hsvae_hf.index_blocks import BLOCK, Block, Ledger, after, are_sentences, gathered, joined_blocks, parts_of
from hsvae_hf.index_checks import as_ids, as_json, as_list, as_strings, as_vectors, at_unit_length, steering
from hsvae_hf.index_encoders import IndexEncoder, Task
from hsvae_hf.index_files import IndexFolder, Manifest
from hsvae_hf.index_rows import make_segment, scaled
from hsvae_hf.index_search import Hit, by_codes, by_kept, nearest, scored
from hsvae_hf.index_segments import (
    SEGMENT_ROWS,
    Segment,
    compacted,
    is_small,
    joined,
    largest_id,
)
from hsvae_hf.input_checks import as_codes, as_matrix, check_positive, check_sentences, check_switch

KEEPS = ("vectors", "codes")
SIMILARITIES = ("cosine", "dot")
Queries: TypeAlias = Sequence[str] | sparse.csr_matrix | np.ndarray | Tensor
Ids: TypeAlias = Sequence[int] | Sequence[str] | np.ndarray


class Index:
    """Exact search over sparse codes.

    Each dimension has a list of the rows that it is on for. A query reads the lists of its own dimensions alone.

    Args:
        encoder: for sentences: a `SparseEncoder`, an `OnnxEncoder`, or a model of words and its tokenizer as a pair. A
            model of `hsvae_hf.fit` is enough for `keep="codes"`. None for codes alone.
        similarity: "cosine" or "dot"; None takes the encoder's, or "cosine".
        keep: what `search(rerank=...)` may read: "vectors", "codes", or None.
        precision: of the values of codes, "float16" or "float32". Half precision moves a value above .00006 by at most
            .0005 of itself.
        vector_precision: of vectors that are kept, "float16" or "int8".
        metadata: of yours, fit for JSON, to be kept with it; `settings.metadata` has them again.

    Raises:
        ValueError: naming the argument that is not such.

    Example:
        >>> index = Index()
        >>> index.add(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), ids=["a", "b"], texts=["first", "second"])
        >>> index.search(np.array([[0.0, 3.0, 0.0]]), k=1)
        [[Hit(id='b', score=1.0, text='second')]]
    """

    def __init__(
        self,
        encoder: Any = None,
        similarity: str | None = None,
        keep: str | None = None,
        precision: str = "float16",
        vector_precision: str = "float16",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.encoder = IndexEncoder(encoder)
        similarity = self.encoder.similarity or "cosine" if similarity is None else similarity
        for name, value, allowed in (
            ("similarity", similarity, SIMILARITIES),
            ("keep", keep, (None, *KEEPS)),
            ("precision", precision, ("float16", "float32")),
            ("vector_precision", vector_precision, ("float16", "int8")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, got {value!r}; choose one.")
        if keep == "codes" and self.encoder.coder is None:
            raise ValueError(
                '`encoder` must decode codes for `keep="codes"`, got none; pass a SparseEncoder with `SparseCodes`, or '
                "the model of `hsvae_hf.fit` that made the codes."
            )
        self.settings = Manifest(similarity, keep, precision, vector_precision, as_json(metadata))
        self.segments: list[Segment] = []
        self.changes = 0  # how often rows came or went
        self._next_id = 0
        self._seen: dict[Path, str] = {}  # folders that it was loaded from or saved to, and the version of then

    def __repr__(self) -> str:
        width = "" if self.latent_size is None else f", {self.latent_size:,} dimensions"
        return f"Index({len(self):,} rows{width}, {self.settings.similarity})"

    def __len__(self) -> int:
        return sum(int((~segment.removed).sum()) for segment in self.segments)

    @property
    def latent_size(self) -> int | None:
        """Dimensions of a code; None before the first row."""
        return self.segments[0].latent_size if self.segments else None

    @property
    def nbytes(self) -> int:
        """Bytes of the index, with ids and texts."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def folders(self) -> list[Path]:
        """Where it was loaded from or saved to."""
        return list(self._seen)

    @classmethod
    def build(
        cls,
        rows: "Iterable[str] | Iterable[sparse.csr_matrix]",
        folder: "str | PathLike[str]",
        ids: Iterable[Any] | None = None,
        resume: bool = False,
        segment_rows: int = SEGMENT_ROWS,
        **settings: Any,
    ) -> Self:
        """Write an index of many rows to a folder, block by block, with one segment in memory at a time.

        A folder is an index once all rows are in it. Segments of a build that was interrupted stay there for `resume`.

        Args:
            rows: sentences; or blocks of codes, each `(rows, latent_size)`, or the view of `load_codes`. To resume,
                pass the same again.
            folder: new or empty.
            ids: of the rows; None numbers them.
            resume: whether to go on with an interrupted build.
            segment_rows: rows that are in memory together.
            settings: of `Index`.

        Returns:
            The index in the folder.

        Raises:
            ValueError: if the folder has an index, another process writes there, or rows are no sentences or codes.
        """
        check_positive(segment_rows=segment_rows)
        check_switch(resume=resume)
        index = cls(**settings)
        with IndexFolder.claim(folder) as place:
            version = place.unfinished(index.settings, resume)
            index.segments = place.segments(version)
            done, ledger = len(index), Ledger(version.checksum)
            numbers = itertools.count() if ids is None else iter(ids)
            index._check_ids_of_before(list(itertools.islice(numbers, done)))
            parts = after(parts_of(rows, index.latent_size), done, version.checksum)
            for block in gathered(map(index._encoded, ledger.watch(parts)), segment_rows):
                names = list(itertools.islice(numbers, len(block)))
                segment = index._segment(block, names)
                ledger.written(len(block))
                version = place.add(version, segment, ledger.value, max(version.next_id, largest_id(segment) + 1))
                done += len(segment)
                index.segments.append(place.segments(version)[-1])
            if ids is not None and next(numbers, None) is not None:
                raise ValueError(f"`ids` must be as many as the {done:,} rows, got more; pass one each.")
            place.finish(version)
        return cls.load(folder, settings.get("encoder"))

    def add(
        self,
        rows: "Sequence[str] | sparse.csr_matrix | np.ndarray | Tensor",
        ids: Ids | None = None,
        texts: Sequence[str] | None = None,
        vectors: np.ndarray | None = None,
    ) -> None:
        """Put rows in.

        Args:
            rows: sentences, which the encoder encodes as documents; or codes `(rows, latent_size)`.
            ids: one for each row, all whole numbers or all strings, none of them in the index; None numbers them.
            texts: of codes, to show.
            vectors: of codes, `(rows, size)`, for `keep="vectors"`.

        Raises:
            ValueError: if these do not fit one another or the index; nothing is added then.
        """
        blocks = list(self._blocks_of(rows, "rows", "document"))
        if not sum(map(len, blocks)):
            return
        whole = joined_blocks(blocks)
        whole = replace(whole, texts=whole.texts if texts is None else as_list(texts, "texts"))
        segment = self._segment(whole if vectors is None else replace(whole, vectors=vectors), ids)
        self._next_id = max(self._next_id, largest_id(segment) + 1)
        while self.segments and is_small(self.segments[-1], len(segment)):  # each row is moved a few times at most
            segment = joined([self.segments.pop(), segment], self.settings.precision)
        self.segments.append(segment)
        self.changes += 1

    def remove(self, ids: Ids) -> None:
        """Take rows out.

        Raises:
            ValueError: if one is not there; nothing is removed then.
        """
        places = self._places(ids)
        for number, segment in enumerate(self.segments):
            segment.removed[places[places[:, 0] == number, 1]] = True
        self.changes += 1

    def search(
        self,
        queries: Queries,
        k: int = 10,
        rerank: str | None = None,
        candidates: int = 200,
        vectors: np.ndarray | None = None,
        boost: Mapping[int, float] | None = None,
        mute: Sequence[int] = (),
    ) -> list[list[Hit]]:
        """The nearest rows of each query, best first.

        Args:
            queries: sentences, or codes `(queries, latent_size)`. For queries that stay dense see `rerank="codes"`, or
                make the index by an encoder with `SparseCodes(asymmetric=True)`.
            k: hits per query, at least 1; fewer where fewer rows have a score above 0.
            rerank: what orders the best `candidates`: "vectors", the cosine of the vectors that are kept; "codes", the
                cosine of the query's vector and the decoded codes. None leaves the order of the codes.
            candidates: rows that the second stage looks at.
            vectors: of queries that are codes, `(queries, size)`, for `rerank`.
            boost: factors of dimensions of the query; scores are no cosines then.
            mute: dimensions to leave out of it.

        Returns:
            For each query its hits.

        Raises:
            ValueError: if a query or a number is not such, or the index does not keep what `rerank` reads.

        Example:
            >>> index = Index(similarity="dot")
            >>> index.add(np.array([[1.0, 0.5], [0.0, 1.0]]))
            >>> [(hit.id, hit.score) for hit in index.search(np.array([[1.0, 1.0]]), boost={1: 3.0})[0]]
            [(1, 3.0), (0, 2.5)]
        """
        check_positive(k=k, candidates=candidates)
        if k is None or candidates is None:
            raise ValueError("`k` and `candidates` must be at least 1, whole numbers, got None; choose positive ones.")
        if rerank is not None and rerank != self.settings.keep:
            raise ValueError(
                f"`rerank` must be what the index keeps, {self.settings.keep!r}, got {rerank!r}; build it with "
                f"`keep={rerank!r}`."
            )
        codes, vectors = self._queries(queries, vectors, rerank is not None)
        if not codes.shape[0]:
            return []
        places = nearest(self.segments, self._steered(codes, boost, mute), k if rerank is None else max(k, candidates))
        if rerank is not None:
            unit = at_unit_length(cast(np.ndarray, vectors))
            dense = self.encoder.dense_queries(unit) if rerank == "codes" else unit
            places = [
                scored(self.segments, found, by_kept(rerank, query), k)
                for found, query in zip(places, dense, strict=True)
            ]
        return [self._hits(found) for found in places]

    def explain(
        self,
        query: "str | sparse.csr_matrix | np.ndarray | Tensor",
        hit: "Hit | int | str",
        boost: Mapping[int, float] | None = None,
        mute: Sequence[int] = (),
    ) -> Explanation:
        """Why a row is near a query: the dimensions that both have on, and what each adds to the score of the codes.

        Args:
            query: a sentence, or a code, `(latent_size,)` or `(1, latent_size)`.
            hit: of `search`, or the id of a row.
            boost: as of the search.
            mute: likewise.

        Returns:
            Its `similarity` is the score of the codes, before any second stage; its `contributions` sum to it; `names`
            are there if the model of the codes has them, or the folder of the index.

        Raises:
            ValueError: if there is no such row.
        """
        if isinstance(query, str):
            codes, _ = self._queries([query], None, False)
        else:
            matrix = as_matrix(query)
            codes, _ = self._queries(matrix if getattr(matrix, "ndim", 2) == 2 else [matrix], None, False)
        if codes.shape[0] != 1:
            raise ValueError(f"`query` must be a single one, got {codes.shape[0]} rows; pass one of them.")
        ((number, row),) = self._places([hit.id if isinstance(hit, Hit) else hit])
        segment = self.segments[number]
        values = segment.values_at(np.array([row]), np.arange(segment.latent_size))[0]
        asked = self._steered(codes, boost, mute).toarray()[0].astype(np.float64)
        kept = (IndexFolder(path).names(segment.latent_size) for path in self._seen)
        return explain_codes(asked, values, self.encoder.names or next(filter(None, kept), None))

    def query_codes(self, queries: Queries) -> sparse.csr_matrix:
        """Codes of queries, `(queries, latent_size)`, at length 1 where they are compared so."""
        return self._queries(queries, None, False)[0]

    def hits_at(self, places: np.ndarray, query: sparse.csr_matrix, k: int) -> list[Hit]:
        """The best of some rows for a query.

        Args:
            places: number of the segment and row in it, `(rows, 2)`.
            query: of `query_codes`, `(1, latent_size)`.
            k: hits.
        """
        found = np.column_stack([places, np.zeros(len(places))]).astype(float)
        found = scored(self.segments, found, by_codes(query), k)
        return self._hits(found[found[:, 2] > 0])

    def blocks(self) -> Iterator[tuple[sparse.csr_matrix, list[int | str], list[str | None]]]:
        """Codes, ids and texts of all rows, a segment at a time; codes are at length 1 where they are compared so."""
        for segment in self.segments:
            codes, table, _ = segment.without_removed()
            yield codes, table["id"].to_pylist(), table["text"].to_pylist()

    def save(self, folder: "str | PathLike[str]") -> None:
        """Write the index, whole or not at all. In a folder that it is in already, only what is new is written.

        Small segments become one, without the rows that were removed.

        Raises:
            ValueError: if the folder holds something else, another process writes there, or the index there was changed
                since this one was loaded from it.
        """
        path = Path(folder).resolve()
        with IndexFolder.claim(path) as place:
            there = place.generation()
            if there is not None and there != self._seen.get(path):
                seen = "that was changed since" if path in self._seen else "with another index"
                raise ValueError(
                    f"`folder` must be new, or as this index knows it, got {str(folder)!r} {seen}; load it."
                )
            version = place.replace(compacted(self.segments, self.settings.precision), self.settings, self._next_id)
            self.segments = place.segments(version)
        self._seen[path] = version.generation
        self.changes += 1

    @classmethod
    def load(cls, folder: "str | PathLike[str]", encoder: Any = None) -> Self:
        """Open what `save` or `build` wrote; nothing is read before it is searched.

        Args:
            folder: of the index.
            encoder: as of `Index`; None for queries that are codes.

        Raises:
            ValueError: if there is no whole index.
        """
        path = Path(folder).resolve()
        version, segments = IndexFolder(path).load()
        index = cls(None, **asdict(replace(version.settings, keep=None)))
        index.encoder, index.settings = IndexEncoder(encoder), version.settings
        index.segments, index._seen, index._next_id = segments, {path: version.generation}, version.next_id
        return index

    def _segment(self, block: Block, ids: Any) -> Segment:
        """Rows as a segment, once everything is known to fit."""
        return make_segment(block, self._new_ids(ids, len(block)), self.settings, self.encoder, self._vector_size())

    def _vector_size(self) -> int | None:
        """Numbers of the vectors that are kept, where there are rows already."""
        known = self.settings.keep == "vectors" and self.segments
        return self.segments[0].kept["vectors"].shape[1] if known else None

    def _new_ids(self, ids: Any, count: int) -> pa.Array:
        """The column of ids, which are not there yet."""
        kind = self.segments[0].table.schema.field("id").type if self.segments else None
        if ids is None and kind == pa.string():
            raise ValueError("`ids` must be given, strings as those in the index, got none; pass one for each row.")
        column = as_ids(range(self._next_id, self._next_id + count) if ids is None else ids, count)
        if kind not in (None, column.type):
            raise ValueError(f"`ids` must be of the kind in the index, {kind}, got {column.type}; pass such.")
        if len(column.unique()) < count or any((segment.positions(column) >= 0).any() for segment in self.segments):
            raise ValueError("`ids` must be new, each once, got one that is there already; remove it first.")
        return column

    def _check_ids_of_before(self, ids: list[Any]) -> None:
        """Refuse other ids for the rows that an interrupted build has written."""
        written = [name for segment in self.segments for name in segment.table["id"].to_pylist()]
        if written != [name.item() if isinstance(name, np.generic) else name for name in ids]:
            raise ValueError("`ids` must be those of before to resume, got others; delete the folder to begin anew.")

    def _places(self, ids: Any) -> np.ndarray:
        """Segment and row of each id, `(ids, 2)`."""
        names = as_list(ids, "ids")
        if not names:
            return np.empty((0, 2), dtype=int)
        column = as_ids(names)
        places = np.full((len(names), 2), -1)
        for number, segment in enumerate(self.segments):
            rows = segment.positions(column)
            places[rows >= 0] = np.stack([np.full(len(rows), number), rows], axis=1)[rows >= 0]
        if (places < 0).any():
            missing = names[int((places[:, 0] < 0).argmax())]
            raise ValueError(f"`ids` must be in the index, got {missing!r}; see the ids of hits.")
        return places

    def _blocks_of(self, rows: Any, name: str, task: Task) -> Iterator[Block]:
        """Sentences, encoded `BLOCK` at a time, or codes."""
        rows = list(rows) if isinstance(rows, Iterator) else rows
        if not are_sentences(rows):
            yield Block(as_codes(rows, self.latent_size, name))
            return
        check_sentences(rows, name)
        sentences = list(rows)
        for start in range(0, len(sentences), BLOCK):
            yield self._encoded(sentences[start : start + BLOCK], task, name)

    def _encoded(self, part: "list[str] | sparse.csr_matrix", task: Task = "document", name: str = "rows") -> Block:
        """Sentences or codes as a block."""
        if not isinstance(part, list):
            return Block(part)
        as_strings(part, name)
        codes, vectors = self.encoder.encode(part, task)
        if self.latent_size not in (None, codes.shape[1]):
            raise ValueError(
                f"`encoder` must be the one that the index was made with, of {self.latent_size} dimensions, got one of "
                f"{codes.shape[1]}; load that one."
            )
        return Block(as_codes(codes, self.latent_size, name), part, vectors)

    def _queries(self, queries: Any, vectors: Any, with_vectors: bool) -> tuple[sparse.csr_matrix, np.ndarray | None]:
        """Codes of queries, at length 1 for cosine, and their vectors."""
        blocks = list(self._blocks_of(queries, "queries", "query"))
        if not blocks:
            return sparse.csr_matrix((0, self.latent_size or 0), dtype=np.float32), None
        whole = joined_blocks(blocks)
        vectors = whole.vectors if vectors is None else vectors
        if with_vectors and vectors is None:
            raise ValueError("`vectors` must be given to rerank queries that are codes, got none; pass their vectors.")
        if vectors is not None:
            vectors = as_vectors(vectors, len(whole), self._vector_size())
        return scaled(whole.codes, self.settings.similarity), vectors

    def _steered(self, codes: sparse.csr_matrix, boost: Any, mute: Any) -> sparse.csr_matrix:
        factors = steering(boost, mute, codes.shape[1])
        return codes if factors is None else sparse.csr_matrix(codes.multiply(factors[None, :]), dtype=np.float32)

    def _hits(self, found: np.ndarray) -> list[Hit]:
        hits = []
        for number, row, score in found.tolist():
            table = self.segments[int(number)].table
            hits.append(Hit(table["id"][int(row)].as_py(), score, table["text"][int(row)].as_py()))
        return hits
