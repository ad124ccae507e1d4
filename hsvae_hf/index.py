"""Index of sparse codes: exact search on one machine, in memory or in a folder that several processes read."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeAlias, cast

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse
from torch import Tensor

from hsvae_hf.explanation import Explanation, explain_codes
from hsvae_hf.index_blocks import Block, after, gathered
from hsvae_hf.index_encoders import IndexEncoder, Task
from hsvae_hf.index_files import INDEX, IndexFolder, Manifest
from hsvae_hf.index_segments import SEGMENT_ROWS, Ids, Segment, forward_arrays, joined, vector_arrays
from hsvae_hf.input_checks import as_codes, check_positive, check_sentences

KEEPS = ("vectors", "codes")
SIMILARITIES = ("cosine", "dot")
BLOCK = 4096  # sentences that are encoded together
Queries: TypeAlias = Sequence[str] | sparse.csr_matrix | np.ndarray | Tensor


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        id: of the row.
        score: its similarity to the query.
        text: if the index has it.
    """

    id: int | str
    score: float
    text: str | None = None


class Index:
    """Exact search over sparse codes.

    Each dimension has a list of the rows that it is on for. A query reads the lists of its own dimensions alone.

    Args:
        encoder: for sentences: a `SparseEncoder`, or a model of words and its tokenizer as a pair. A model of
            `hsvae_hf.fit` is enough for `keep="codes"`. None for codes alone.
        similarity: "cosine" or "dot"; None takes the encoder's, or "cosine".
        keep: what `search(rerank=...)` may read: "vectors", "codes", or None.
        precision: of the values of codes, "float16" or "float32". Half precision moves a score by at most .0005 of it.
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
        self.settings = Manifest(similarity, keep, precision, vector_precision, metadata or {})
        self.segments: list[Segment] = []
        self.folder: Path | None = None  # where it was loaded from or saved to

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
            rows: sentences; or blocks of codes, each `(rows, latent_size)`. To resume, pass the same again.
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
        index = cls(**settings)
        with IndexFolder.claim(folder, "folder") as place:
            index.segments = place.resumed(index.settings, resume)
            done = len(index)
            numbers = itertools.count() if ids is None else iter(ids)
            collections.deque(itertools.islice(numbers, done), maxlen=0)
            for block in gathered(index._blocks(after(rows, done)), segment_rows):
                names = np.array(list(itertools.islice(numbers, block.codes.shape[0])))
                segment = index._segment(block.codes, names, block.texts, block.vectors)
                index.segments.append(place.add(segment, index.settings))
            place.finish(index.settings)
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
        segment = self._segment(rows, ids, texts, vectors)
        while self.segments and _is_small(self.segments[-1], len(segment)):  # each row is moved a few times at most
            segment = joined([self.segments.pop(), segment], self.settings.precision)
        self.segments.append(segment)

    def remove(self, ids: Ids) -> None:
        """Take rows out.

        Raises:
            ValueError: if one is not there; nothing is removed then.
        """
        places = self._places(ids)
        for number, segment in enumerate(self.segments):
            segment.removed[places[places[:, 0] == number, 1]] = True

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
            queries: sentences, or codes `(queries, latent_size)`; dense queries of `hsvae_hf.encode_queries` too.
            k: hits per query, at least 1; fewer where fewer rows share a dimension with it.
            rerank: what orders the best `candidates`: "vectors", the cosine of the vectors that are kept; "codes", the
                cosine of the query's vector and the decoded codes. None leaves the order of the codes.
            candidates: rows that the second stage looks at.
            vectors: of queries that are codes, `(queries, size)`, for `rerank`.
            boost: factors of dimensions of the query.
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
        if rerank is not None and rerank != self.settings.keep:
            raise ValueError(
                f"`rerank` must be what the index keeps, {self.settings.keep!r}, got {rerank!r}; build it with "
                f"`keep={rerank!r}`."
            )
        codes, vectors = self._queries(queries, vectors, rerank is not None)
        codes = self._steered(codes, boost or {}, mute)
        places = self._nearest(codes, k if rerank is None else max(k, candidates))
        if rerank is not None:
            places = self._reranked(rerank, places, cast(np.ndarray, vectors), k)
        return [self._hits(found) for found in places]

    def explain(self, query: "str | sparse.csr_matrix | np.ndarray | Tensor", hit: "Hit | int | str") -> Explanation:
        """Why a row is near a query: the dimensions that both have on, and what each adds to the score of the codes.

        Args:
            query: a sentence, or a code, `(latent_size,)` or `(1, latent_size)`.
            hit: of `search`, or the id of a row.

        Returns:
            Its `similarity` is the score, its `contributions` sum to it; `names` are there if the model of the codes
            has them.

        Raises:
            ValueError: if there is no such row.
        """
        if not isinstance(query, str) and not sparse.issparse(query):
            query = cast(Any, query).reshape(1, -1)
        codes, _ = self._queries([query] if isinstance(query, str) else query, None, False)
        ((number, row),) = self._places([hit.id if isinstance(hit, Hit) else hit])
        segment = self.segments[number]
        values = segment.values_at(np.array([row]), np.arange(segment.latent_size))[0]
        return explain_codes(codes.toarray()[0].astype(np.float64), values, self.encoder.names)

    def query_codes(self, queries: Queries) -> sparse.csr_matrix:
        """Codes of queries, `(queries, latent_size)`, at length 1 where they are compared so."""
        return self._queries(queries, None, False)[0]

    def hits_at(self, places: np.ndarray, query: sparse.csr_matrix, k: int) -> list[Hit]:
        """The best of some rows for a query.

        Args:
            places: segment and row of each, `(rows, 2)`.
            query: of `query_codes`, `(1, latent_size)`.
            k: hits.
        """
        found = np.column_stack([places, np.zeros(len(places))]).astype(float)
        for number in np.unique(places[:, 0]).tolist():
            chosen = places[:, 0] == number
            values = self.segments[number].values_at(places[chosen, 1], query.indices)
            found[chosen, 2] = values @ query.data
        return self._hits(_best(found[found[:, 2] > 0], k))

    def blocks(self) -> Iterator[tuple[sparse.csr_matrix, list[int | str], list[str | None]]]:
        """Codes, ids and texts of all rows, a segment at a time; codes are at length 1 where they are compared so."""
        for segment in self.segments:
            codes, table, _ = segment.without_removed()
            yield codes, table["id"].to_pylist(), table["text"].to_pylist()

    def save(self, folder: "str | PathLike[str]") -> None:
        """Write the index, whole or not at all. In the folder that it was loaded from, only what is new is written.

        Small segments become one, without the rows that were removed.

        Raises:
            ValueError: if the folder holds something else, or another process writes there.
        """
        path = Path(folder).resolve()
        if (path / INDEX).exists() and path != self.folder:
            raise ValueError(
                f"`folder` must be new, or that of this index, got {str(folder)!r} with another; name one."
            )
        with IndexFolder.claim(path, "folder") as place:
            self.segments = place.replace(_compacted(self.segments, self.settings.precision), self.settings)
        self.folder = path

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
        settings, segments = IndexFolder(path).load()
        index = cls(None, **asdict(replace(settings, keep=None)))
        index.encoder, index.settings = IndexEncoder(encoder), settings
        index.segments, index.folder = segments, path
        return index

    def _segment(self, rows: Any, ids: Ids | None, texts: Sequence[str] | None, vectors: np.ndarray | None) -> Segment:
        """Rows as a segment, once everything is known to fit."""
        if _are_sentences(rows):
            check_sentences(rows, "rows")
            texts = list(rows) if texts is None else texts
            codes, found = self._encoded(list(rows), "document")
            vectors = found if vectors is None else vectors
        else:
            codes = as_codes(rows, self.latent_size, "rows")
        count = codes.shape[0]
        for name, column in (("ids", ids), ("texts", texts), ("vectors", vectors)):
            if column is not None and len(column) != count:
                raise ValueError(f"`{name}` must be as many as the {count:,} rows, got {len(column):,}; pass one each.")
        keep, kept = self.settings.keep, {}
        if keep == "vectors":
            if vectors is None:
                raise ValueError('`vectors` must be given for `keep="vectors"`, got none; pass those of the rows.')
            kept = vector_arrays(np.asarray(vectors), self.settings.vector_precision)
        if keep == "codes":
            kept = forward_arrays(self.encoder.decodable(codes), self.settings.precision)
        codes = self._scaled(codes)
        if self.settings.precision == "float16" and codes.nnz and np.abs(codes.data).max() > np.finfo(np.float16).max:
            raise ValueError("`rows` must have values below 65,504 in half precision; pass `precision='float32'`.")
        text = pa.nulls(count, pa.string()) if texts is None else pa.array(texts, pa.string())
        table = pa.table({"id": self._new_ids(ids, count), "text": text})
        return Segment.build(codes, table, kept, self.settings.precision)

    def _new_ids(self, ids: Ids | None, count: int) -> pa.Array:
        """The column of ids."""
        if ids is None:
            first = max((segment.next_id for segment in self.segments), default=0)
            ids = np.arange(first, first + count)
        column = pa.array(np.asarray(ids))
        kind = self.segments[0].table.schema.field("id").type if self.segments else None
        column = column.cast(pa.int64()) if pa.types.is_integer(column.type) else column
        if column.type not in (pa.int64(), pa.string()) or kind not in (None, column.type):
            wanted = f"of the kind in the index, {kind}" if kind else "whole numbers or strings"
            raise ValueError(f"`ids` must be {wanted}, got {column.type}; pass a list of one kind.")
        if len(column.unique()) < count or any((segment.positions(column) >= 0).any() for segment in self.segments):
            raise ValueError("`ids` must be new, each once, got one that is there already; remove it first.")
        return column

    def _places(self, ids: Any) -> np.ndarray:
        """Segment and row of each id, `(ids, 2)`."""
        if isinstance(ids, str | int):
            raise ValueError(f"`ids` must be a list, got {ids!r}; write it as [{ids!r}].")
        places = np.full((len(ids), 2), -1)
        for number, segment in enumerate(self.segments):
            try:
                column = pa.array(np.asarray(ids)).cast(segment.table.schema.field("id").type)
            except pa.ArrowInvalid:
                break
            rows = segment.positions(column)
            places[rows >= 0] = np.stack([np.full(len(rows), number), rows], axis=1)[rows >= 0]
        if (places < 0).any():
            missing = ids[int((places[:, 0] < 0).argmax())]
            raise ValueError(f"`ids` must be in the index, got {missing!r}; see the ids of hits.")
        return places

    def _blocks(self, rows: Iterable[Any]) -> Iterator[Block]:
        """Sentences, encoded `BLOCK` at a time, or blocks of codes."""
        rows = iter(rows)
        for first in rows:
            if not isinstance(first, str):
                yield Block(as_codes(first, self.latent_size, "rows"), None, None)
                continue
            sentences = [first, *itertools.islice(rows, BLOCK - 1)]
            check_sentences(sentences, "rows")
            codes, vectors = self._encoded(sentences, "document")
            yield Block(codes, sentences, vectors)

    def _encoded(self, sentences: Sequence[str], task: Task) -> tuple[sparse.csr_matrix, np.ndarray | None]:
        parts = [self.encoder.encode(sentences[at : at + BLOCK], task) for at in range(0, len(sentences), BLOCK)]
        if not parts:
            raise ValueError("`rows` must have a row, got none; pass at least one.")
        vectors = [part[1] for part in parts if part[1] is not None]
        return sparse.vstack([part[0] for part in parts], format="csr"), np.concatenate(vectors) if vectors else None

    def _queries(
        self, queries: Any, vectors: np.ndarray | None, with_vectors: bool
    ) -> tuple[sparse.csr_matrix, np.ndarray | None]:
        """Codes of queries, at length 1 for cosine, and their vectors."""
        if _are_sentences(queries):
            check_sentences(queries, "queries")
            codes, found = self._encoded(list(queries), "query") if len(queries) else (self._none(), None)
            vectors = found if vectors is None else vectors
        else:
            codes = as_codes(queries, self.latent_size, "queries")
        if with_vectors and vectors is None:
            raise ValueError("`vectors` must be given to rerank queries that are codes, got none; pass their vectors.")
        if vectors is not None and len(vectors) != codes.shape[0]:
            raise ValueError(f"`vectors` must be as many as the {codes.shape[0]} queries, got {len(vectors)}.")
        return self._scaled(codes), vectors

    def _none(self) -> sparse.csr_matrix:
        return sparse.csr_matrix((0, self.latent_size or 0), dtype=np.float32)

    def _scaled(self, codes: sparse.csr_matrix) -> sparse.csr_matrix:
        """At length 1 where codes are compared by cosine; an empty code stays empty."""
        if self.settings.similarity == "dot":
            return codes
        lengths = np.sqrt(np.asarray(codes.multiply(codes).sum(axis=1)).ravel())
        return sparse.csr_matrix(codes.multiply(1 / np.where(lengths > 0, lengths, 1)[:, None]), dtype=np.float32)

    def _steered(self, codes: sparse.csr_matrix, boost: Mapping[int, float], mute: Sequence[int]) -> sparse.csr_matrix:
        factors = np.ones(codes.shape[1], dtype=np.float32)
        for name, chosen in (("boost", boost), ("mute", mute)):
            for dimension in chosen:
                if not isinstance(dimension, int | np.integer) or not 0 <= dimension < codes.shape[1]:
                    rule = f"from 0 to {codes.shape[1] - 1}"
                    raise ValueError(f"`{name}` must name dimensions {rule}, got {dimension!r}; see `explain`.")
                factors[dimension] = boost[dimension] if name == "boost" else 0.0
        return codes if not boost and not len(mute) else sparse.csr_matrix(codes.multiply(factors[None, :]))

    def _nearest(self, codes: sparse.csr_matrix, count: int) -> list[np.ndarray]:
        """Segment, row and score of the best rows of each query, `(rows, 3)`, best first."""
        best = [np.empty((0, 3)) for _ in range(codes.shape[0])]
        floors = np.zeros(len(best))  # the lowest score that counts
        for number, segment in enumerate(self.segments):
            scores, removed = torch.empty(len(segment)), torch.from_numpy(segment.removed)
            any_removed = bool(segment.removed.any())
            for query in range(codes.shape[0]):
                part = slice(codes.indptr[query], codes.indptr[query + 1])
                scores.zero_()
                segment.add_scores(codes.indices[part], codes.data[part], scores)
                if any_removed:
                    scores[removed] = 0.0
                found = _highest(scores, count, floors[query])
                found = np.stack([np.full(len(found), number), found, scores[found].numpy()], axis=1)
                best[query] = _best(np.concatenate([best[query], found]), count)
                if len(best[query]) == count:
                    floors[query] = best[query][-1, 2]
        return best

    def _reranked(self, rerank: str, places: list[np.ndarray], vectors: np.ndarray, k: int) -> list[np.ndarray]:
        """The same, ordered by the second stage."""
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        dense = self.encoder.dense_queries(unit) if rerank == "codes" else unit
        results = []
        for found, query in zip(places, dense, strict=True):
            for number, segment in enumerate(self.segments):
                chosen = found[:, 0] == number
                rows = found[chosen, 1].astype(int)
                kept = segment.kept_codes(rows) if rerank == "codes" else segment.kept_vectors(rows)
                found[chosen, 2] = kept @ query
            results.append(_best(found, k))
        return results

    def _hits(self, found: np.ndarray) -> list[Hit]:
        hits = []
        for number, row, score in found.tolist():
            table = self.segments[int(number)].table
            hits.append(Hit(table["id"][int(row)].as_py(), score, table["text"][int(row)].as_py()))
        return hits


def _are_sentences(rows: Any) -> bool:
    if sparse.issparse(rows) or isinstance(rows, Tensor) or (isinstance(rows, np.ndarray) and rows.dtype.kind in "fiu"):
        return False
    return isinstance(rows, str) or not len(rows) or isinstance(rows[0], str)


def _is_small(segment: Segment, rows: int) -> bool:
    """Whether a segment that is in no file is to become one with the next, of so many rows."""
    return segment.folder is None and len(segment) < 2 * rows and len(segment) + rows <= SEGMENT_ROWS


def _compacted(segments: Sequence[Segment], precision: str) -> list[Segment]:
    """The same rows in few segments: neighbours of together at most `SEGMENT_ROWS` become one."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if groups and sum(map(len, groups[-1])) + len(segment) <= SEGMENT_ROWS:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return [group[0] if len(group) == 1 else joined(group, precision) for group in groups]


def _highest(scores: Tensor, count: int, floor: float) -> np.ndarray:
    """Rows of the highest scores above `floor`, at most `count`."""
    if floor > 0:
        rows = (scores > floor).nonzero().squeeze(1)
        return rows[scores[rows].topk(min(count, len(rows))).indices].numpy()
    values, rows = scores.topk(min(count, len(scores)))
    return rows[values > 0].numpy()


def _best(found: np.ndarray, count: int) -> np.ndarray:
    """The rows of the highest scores; of equal ones, those that were put in first."""
    return found[np.lexsort((found[:, 1], found[:, 0], -found[:, 2]))[:count]]
