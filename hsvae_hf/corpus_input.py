"""Input of a corpus: files of sentences or of vectors, in order, read block by block."""

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from hsvae_hf.index_blocks import checksum
from hsvae_hf.text_files import SUFFIXES, VECTOR_FILES, check_one_kind, find_text_column, read_cells, read_columns
from hsvae_hf.vector_files import as_float32, find_not_finite

INPUT_FILES = (*SUFFIXES, *VECTOR_FILES)
VECTORS = "vectors"  # the column
_TOGETHER = 4096  # vectors that are read at a time
Block: TypeAlias = "list[str] | np.ndarray"


@dataclass(frozen=True)
class CorpusInput:
    """Files in order.

    Attributes:
        files: of one kind, sentences or vectors.
        names: of the files, as the user knows them.
        column: of the sentences; None for vectors.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    column: str | None

    def described(self) -> list[list[Any]]:
        """Names and bytes of the files, to tell them from others."""
        return [[name, file.stat().st_size] for name, file in zip(self.names, self.files, strict=True)]

    def some(self, rows: int) -> Block:
        """The first rows, at most so many.

        Raises:
            ValueError: if there is none.
        """
        found = next(self.blocks(rows), None)
        if found is None:
            raise ValueError(f"`input` must hold at least one row, got the empty file {self.names[0]!r}; add some.")
        return found

    def blocks(self, rows: int) -> Iterator[Block]:
        """The rows in blocks of `rows`, the last one shorter: lists of sentences, or arrays `(rows, size)`, float32.

        Raises:
            ValueError: naming the file that is damaged, or a row without a sentence.
        """
        if self.column is None:
            yield from _regrouped((part for file in self.files for part in _vector_parts(file)), rows)
            return
        sentences = (str(row["text"]) for row in read_cells([str(file) for file in self.files], self.column))
        while block := list(islice(sentences, rows)):
            yield block


def corpus_input(
    places: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]", text_column: str | None = None
) -> CorpusInput:
    """The files of a corpus.

    Args:
        places: files, and folders, of which all files are read that can be, in the order of their names, those of
            folders in them too. A folder of shards of vectors is one.
        text_column: column of the sentences, if not found by name.

    Raises:
        ValueError: if there is no such file, or files are of different kinds.
    """
    given = [places] if isinstance(places, str | os.PathLike) else list(places)
    found = [pair for place in given for pair in _files_of(Path(place).expanduser())]
    if not found:
        raise ValueError(f"`input` must be at least one file, got {[str(place) for place in given]}; name some.")
    vectors = [file for file, _ in found if _holds_vectors(file, text_column)]
    check_one_kind("input", [file for file, _ in found if file not in vectors], vectors)
    files, names = zip(*(pair for pair in found if not vectors or pair[0] in vectors), strict=True)
    column = None if vectors else find_text_column(read_columns(files[0]), text_column, str(files[0]))
    return CorpusInput(files, names, column)


def rows_checksum(rows: Block) -> int:
    """A number that tells rows from others."""
    return checksum(rows) if isinstance(rows, list) else zlib.crc32(rows.tobytes())


def _files_of(place: Path) -> list[tuple[Path, str]]:
    """Files, and their names."""
    if place.is_file() and place.suffix.lower() in INPUT_FILES:
        return [(place, place.name)]
    if not place.is_dir():
        names = ", ".join(INPUT_FILES)
        raise ValueError(f"`input` must be a {names} file, or a folder, got {str(place)!r}; check the path.")
    parts = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
    taken = [
        part
        for part in parts
        if part.suffix.lower() in INPUT_FILES and not any(name.startswith(".") for name in part.parts)
    ]
    if not taken:
        raise ValueError(f"`input` must be a folder of {', '.join(INPUT_FILES)} files, got {str(place)!r}; add some.")
    return [(place / part, part.as_posix()) for part in taken]


def _holds_vectors(file: Path, text_column: str | None) -> bool:
    suffix = file.suffix.lower()
    return suffix in VECTOR_FILES or (suffix == ".parquet" and text_column is None and VECTORS in read_columns(file))


def _vector_parts(path: Path) -> Iterator[np.ndarray]:
    """Vectors of a file, `(rows, size)`, float32, in parts.

    Raises:
        ValueError: if the file holds none, or a row that is not finite.
    """
    row = 0
    for part in _raw_parts(path):
        yield finite_vectors(part, str(path), row)
        row += len(part)


def finite_vectors(vectors: np.ndarray, file: str, first_row: int) -> np.ndarray:
    """The same in float32.

    Args:
        vectors: `(rows, size)`.
        file: that they are from.
        first_row: number of the first of them in it, from 0 on.

    Raises:
        ValueError: naming the first row with NaN or infinity.
    """
    found = as_float32(vectors)
    wrong = find_not_finite(found)
    if wrong is not None:
        raise ValueError(
            f"`input` must hold finite numbers, got NaN or infinity in row {first_row + wrong} of {file!r}, counted "
            "from 0; drop or repair it."
        )
    return found


def _raw_parts(path: Path) -> Iterator[np.ndarray]:
    """The same as they are in the file."""
    readers = {".npy": _npy_parts, ".arrow": _arrow_parts, ".parquet": _parquet_parts}
    try:
        for part in readers[path.suffix.lower()](path):
            if part.ndim != 2 or part.dtype.kind not in "fiu" or not part.shape[1]:
                raise ValueError(f"it has {part.dtype} of the shape {part.shape}")
            yield part
    except (ValueError, TypeError, KeyError, EOFError, OSError, pa.ArrowException) as error:
        raise ValueError(
            f"`input` must hold vectors, (rows, size), got {str(path)!r}: {error}; write it again."
        ) from error


def _npy_parts(path: Path) -> Iterator[np.ndarray]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2:
        yield array
    for start in range(0, len(array), _TOGETHER):
        # Mapped anew each time: the kernel counts pages that were read as memory of this process while they are mapped.
        yield np.load(path, mmap_mode="r", allow_pickle=False)[start : start + _TOGETHER]


def _arrow_parts(path: Path) -> Iterator[np.ndarray]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield from _column_parts([reader.get_batch(number)])


def _parquet_parts(path: Path) -> Iterator[np.ndarray]:
    with pq.ParquetFile(path) as file:
        yield from _column_parts(file.iter_batches(batch_size=_TOGETHER, columns=[VECTORS]))


def _column_parts(batches: Iterable[pa.RecordBatch]) -> Iterator[np.ndarray]:
    return (vectors_of(batch.column(VECTORS)) for batch in batches)


def vectors_of(column: pa.Array) -> np.ndarray:
    """A column of lists of numbers as an array, `(rows, size)`.

    Raises:
        ValueError: if the lists are of different lengths.
    """
    lengths = np.unique(np.asarray(pa.compute.list_value_length(column)))
    if column.null_count or len(lengths) > 1:
        raise ValueError("the lists of the column `vectors` are of different lengths")
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _regrouped(parts: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in arrays of `rows`, the last one shorter."""
    waiting: list[np.ndarray] = []
    count = 0
    for part in parts:
        if waiting and part.shape[1] != waiting[0].shape[1]:
            raise ValueError(
                f"`input` must be vectors of one size, got {part.shape[1]} numbers after {waiting[0].shape[1]}; encode "
                "them apart."
            )
        waiting.append(part)
        count += len(part)
        while count >= rows:
            whole = np.concatenate(waiting)
            yield whole[:rows]
            waiting, count = [whole[rows:]], count - rows
    if count:
        yield np.concatenate(waiting)
