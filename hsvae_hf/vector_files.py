"""Vectors in files, larger than memory: shards as one array of rows that is read block by block."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hsvae_hf.shard_manifest import files_inside
from hsvae_hf.text_files import SUFFIXES, check_one_kind

COLUMNS = ("vectors", "embedding", "embeddings")  # of a table, in this order
IN_MEMORY = 2**30  # bytes up to which one file is read whole
BLOCK_BYTES = 2**22  # of a block, where the file may be cut anywhere
_DAMAGED = (ValueError, TypeError, IndexError, EOFError, OSError, pa.ArrowException)  # of files that are none
_CHECKED_ROWS = 4096  # at a time
VectorSource: TypeAlias = np.ndarray | torch.Tensor | str | PathLike[str] | Sequence[str | PathLike[str]]


class Shard(ABC):
    """Rows of one file or array.

    Args:
        source: the file or the array.
        shape: `(rows, size)`.
    """

    def __init__(self, source: Path | np.ndarray, shape: tuple[int, ...]) -> None:
        self.source, self.shape = source, shape
        self.name = str(source) if isinstance(source, Path) else "an array"  # for errors

    def cuts(self, rows: int) -> list[int]:
        """Where it may be cut into blocks of about so many rows: 0, ..., the number of rows."""
        return [*range(0, self.shape[0], rows), self.shape[0]]

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`, which are in `cuts`, `(stop - start, size)`."""


class ArrayShard(Shard):
    """An array, such as one that its owner has mapped into memory."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array, array.shape)
        self.array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        """As of every shard."""
        return self.array[start:stop]


class NpyShard(Shard):
    """A `.npy` file, mapped into memory for the time of a read only: pages that stay mapped count as memory in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path, self._map().shape)

    def _map(self) -> np.ndarray:
        array: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"it holds {array.dtype}")
        return array

    def read(self, start: int, stop: int) -> np.ndarray:
        """As of every shard."""
        return np.array(self._map()[start:stop])


class ArrowShard(Shard):
    """An Arrow file or stream with a column of vectors, mapped into memory for the time of a read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as file:
            try:
                pa.ipc.open_file(file)
                self.is_stream = False
            except pa.ArrowInvalid:
                self.is_stream = True
        ends, size = [0], 0
        for batch in self.batches():
            self.column = find_column(batch.schema.names)
            size = size or as_matrix(batch.column(self.column).slice(0, 1)).shape[1]
            ends.append(ends[-1] + batch.num_rows)
        self._ends = np.array(ends[1:])
        super().__init__(path, (ends[-1], size))

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[pa.RecordBatch]:
        """Record batches by their numbers; the file is mapped while they are given."""
        with pa.memory_map(str(self.path)) as file:
            if self.is_stream:  # whose batches can only be passed over, which reads nothing of them
                yield from islice(pa.ipc.open_stream(file), first, last)
            else:
                reader = pa.ipc.open_file(file)
                yield from map(reader.get_batch, range(first, reader.num_record_batches if last is None else last))

    def read(self, start: int, stop: int) -> np.ndarray:
        """As of every shard."""
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        parts = []
        for end, batch in zip(self._ends[first : last + 1], self.batches(first, last + 1), strict=True):
            begin = max(0, start - (end - batch.num_rows))
            parts.append(as_matrix(batch.column(self.column).slice(begin, stop - (end - batch.num_rows) - begin)))
        return np.concatenate(parts)


class ParquetShard(Shard):
    """A Parquet file with a column of vectors, read by row groups: a block is one or several of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self.column = find_column(file.schema_arrow.names)
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            first = next(file.iter_batches(1, columns=[self.column]), None)
        size = 0 if first is None else as_matrix(first.column(0)).shape[1]
        self._ends = np.cumsum(groups)
        super().__init__(path, (sum(groups), size))

    def cuts(self, rows: int) -> list[int]:
        """Ends of row groups; groups of fewer rows are taken together."""
        cuts = [0]
        for end, following in pairwise([*self._ends.tolist(), np.inf]):
            if following - cuts[-1] > rows:
                cuts.append(int(end))
        return cuts

    def read(self, start: int, stop: int) -> np.ndarray:
        """As of every shard."""
        first, last = np.searchsorted(self._ends, [start, stop], side="right")
        with pq.ParquetFile(self.path) as file:
            table = file.read_row_groups(range(first, last), columns=[self.column], use_threads=False)
        return np.concatenate([as_matrix(chunk) for chunk in table.column(0).chunks])


def find_column(names: Sequence[str]) -> str:
    """The column of vectors: one of `COLUMNS`, or the only one.

    Raises:
        ValueError: if there is none.

    >>> find_column(["id", "embedding"])
    'embedding'
    """
    known = [name for name in COLUMNS if name in names]
    if not known and len(names) != 1:
        raise ValueError(f"it has the columns {', '.join(names)} and no `vectors` or `embedding`")
    return known[0] if known else names[0]


def as_matrix(column: pa.Array) -> np.ndarray:
    """A column of lists of numbers as `(rows, size)`.

    Raises:
        ValueError: for a column of something else, or lists of different lengths or with gaps.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise ValueError(f"its column holds {kind}, not lists of numbers")
    values = column.flatten()
    if column.null_count or values.null_count:
        raise ValueError("it has rows or numbers that are missing")
    size = len(values) // max(1, len(column))
    if not pa.types.is_fixed_size_list(kind) and (np.diff(column.offsets.to_numpy()) != size).any():
        raise ValueError("its rows have different lengths")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(column), size)


_SHARDS: dict[str, Callable[[Path], Shard]] = {".npy": NpyShard, ".parquet": ParquetShard, ".arrow": ArrowShard}


@dataclass(frozen=True)
class Block:
    """Rows of a shard that are read together.

    Args:
        shard: that they are in.
        start: first of them, there.
        stop: after the last.
        first: first of them, in all shards.
    """

    shard: Shard
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        """Number of rows."""
        return self.stop - self.start


class VectorShards:
    """Rows of several files or arrays, one after the other, of which a block at a time is in memory.

    Args:
        shards: in their order; those without rows add none.
        argument: that they were given for, for errors.

    Raises:
        ValueError: if they have no rows, or rows of different sizes.
    """

    def __init__(self, shards: Sequence[Shard], argument: str = "vectors") -> None:
        self.argument = argument
        shards = [shard for shard in shards if shard.shape[0]] or shards
        self.shards = list(shards)
        for shard in shards:
            if len(shard.shape) != 2 or 0 in shard.shape:
                raise self._refusal(shard.name, f"it has the shape {shard.shape}")
            if shard.shape[1] != shards[0].shape[1]:
                other = f"{shards[0].shape[1]} in {shards[0].name!r} and {shard.shape[1]} in {shard.name!r}"
                raise ValueError(f"`{argument}` must have as many numbers in every row, got {other}; remove one.")
        self.shape = sum(shard.shape[0] for shard in shards), shards[0].shape[1]
        self.blocks: list[Block] = []
        rows = max(1, BLOCK_BYTES // (4 * self.shape[1]))
        first = 0
        for shard in shards:
            for start, stop in pairwise(shard.cuts(rows)):
                self.blocks.append(Block(shard, start, stop, first + start))
            first += shard.shape[0]

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def read(self, block: Block) -> np.ndarray:
        """The rows of a block, `(rows, size)`, float32.

        Raises:
            ValueError: if they cannot be read, or are not finite.
        """
        try:
            rows = as_float32(block.shard.read(block.start, block.stop))
        except _DAMAGED as error:
            raise self._refusal(block.shard.name, error) from error
        if rows.shape != (len(block), self.shape[1]):
            raise self._refusal(block.shard.name, f"it has rows of the shape {rows.shape} from row {block.start} on")
        wrong = find_not_finite(rows)
        if wrong is not None:
            raise self._refusal(block.shard.name, f"it holds NaN or infinity in row {block.start + wrong}")
        return rows

    def read_all(self) -> np.ndarray:
        """All rows, `(rows, size)`, float32."""
        whole = np.empty(self.shape, np.float32)
        for block in self.blocks:
            whole[block.first : block.first + len(block)] = self.read(block)
        return whole

    def _refusal(self, name: str, what: object) -> ValueError:
        return _refusal(self.argument, name, what)


def _refusal(argument: str, name: str, what: object) -> ValueError:
    return ValueError(f"`{argument}` must hold finite numbers, (rows, size), got {name!r}: {what}; write it again.")


def as_float32(array: np.ndarray) -> np.ndarray:
    """Rows as torch takes them: float32, contiguous, writable; a copy only where they are not."""
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return np.require(array, np.float32, ["C", "W"])


def find_not_finite(array: np.ndarray) -> int | None:
    """The first row of `(rows, size)` with NaN or infinity, found in bounded memory; None if there is none."""
    for start in range(0, len(array), _CHECKED_ROWS):
        finite = np.isfinite(array[start : start + _CHECKED_ROWS]).all(axis=1)
        if not finite.all():
            return start + int(finite.argmin())
    return None


def listed_paths(source: Any) -> list[Path]:
    """The files and folders that are meant, none where vectors themselves are given.

    >>> listed_paths("a.npy"), listed_paths(np.eye(2))
    ([PosixPath('a.npy')], [])
    """
    given = source if isinstance(source, list | tuple) else [source]
    return [Path(one) for one in given] if all(isinstance(one, str | PathLike) for one in given) else []


def mapped_file(array: object) -> Path | None:
    """The file that an array is mapped from into memory; None where it is not."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return Path(str(array.filename)) if isinstance(array, np.memmap) else None


def open_vectors(source: VectorSource, argument: str = "vectors") -> np.ndarray | VectorShards:
    """Vectors in memory, or of files that are read while they are used.

    One file of up to `IN_MEMORY` bytes is read at once; a larger one, a folder and a list are not read yet. The same
    goes for an array that is mapped into memory.

    Args:
        source: `(rows, size)`; or a `.npy`, `.parquet` or `.arrow` file, a folder of such, or a list of both. The files
            of a folder, and of folders in it, are taken by name. A table has a column `vectors` or `embedding`, or only
            one, of lists of numbers.
        argument: that it was given for.

    Returns:
        An array, float32, or shards.

    Raises:
        ValueError: if there is no such file, or one cannot be read; if vectors are no matrix of finite numbers.
    """
    paths = listed_paths(source)
    if not paths:
        return _open_array(source, argument)
    found = _open_files(paths, argument)
    whole = len(paths) == 1 and paths[0].is_file() and _bytes(found.shape) <= IN_MEMORY
    return found.read_all() if whole else found


def read_vectors(source: VectorSource, argument: str = "vectors") -> np.ndarray:
    """As `open_vectors`, all in memory, `(rows, size)`, float32.

    Raises:
        ValueError: as `open_vectors`.
    """
    found = open_vectors(source, argument)
    return found.read_all() if isinstance(found, VectorShards) else found


def _open_files(paths: list[Path], argument: str) -> VectorShards:
    shards: list[Shard] = []
    for path in paths:
        inside = list(files_inside(path, _SHARDS, argument)) if path.is_dir() else [path]
        if not inside or not all(file.suffix.lower() in _SHARDS and file.is_file() for file in inside):
            kinds = ".npy, .parquet or .arrow file, or a folder of such"
            found = "a folder without such files; name another" if path.is_dir() else "check the path"
            raise ValueError(f"`{argument}` must be a {kinds}, got {str(path)!r}; {found}.")
        if path.is_dir():
            sentences = set(SUFFIXES) - set(_SHARDS)
            others = [file for file in files_inside(path, sentences, argument) if file not in inside]
            check_one_kind(argument, others, inside)
        for file in inside:
            try:
                shards.append(_SHARDS[file.suffix.lower()](file))
            except _DAMAGED as error:
                raise _refusal(argument, str(file), error) from error
    return VectorShards(shards, argument)


def _open_array(vectors: object, argument: str) -> np.ndarray | VectorShards:
    try:
        array = vectors.detach().cpu().float().numpy() if isinstance(vectors, torch.Tensor) else np.asarray(vectors)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"`{argument}` must be numbers, (rows, size), got {array.dtype} of {array.shape}; stack them.")
    if mapped_file(vectors) is not None and _bytes(array.shape) > IN_MEMORY:
        return VectorShards([ArrayShard(array)], argument)
    array = as_float32(array)
    if find_not_finite(array) is not None:
        raise ValueError(f"`{argument}` must be finite, got NaN or infinity; drop or repair such rows.")
    return array


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)
