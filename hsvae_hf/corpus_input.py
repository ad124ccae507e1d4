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
import pyarrow.parquet as pq

from hsvae_hf.index_blocks import checksum
from hsvae_hf.shard_manifest import Shard, files_inside
from hsvae_hf.text_files import SUFFIXES, VECTOR_FILES, check_one_kind, find_text_column, read_cells, read_columns
from hsvae_hf.vector_files import COLUMNS, ArrowShard, as_float32, as_matrix, find_not_finite

INPUT_FILES = (*SUFFIXES, *VECTOR_FILES)
VECTORS = COLUMNS[0]  # the column
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
            yield from _regrouped(_parts_of(self.files), rows)
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
            folders in them too, and where links lead. Of a folder of shards of vectors its manifest tells which.
        text_column: column of the sentences, if not found by name.

    Raises:
        ValueError: if there is no such file, files are of different kinds, or shards of vectors are not complete.
    """
    given = listed(places)
    found = [pair for place in given for pair in _files_of(Path(place).expanduser())]
    if not found:
        raise ValueError(f"`input` must be at least one file, got {given}; name some.")
    vectors = [file for file, _ in found if _holds_vectors(file, text_column)]
    check_one_kind("input", [file for file, _ in found if file not in vectors], vectors)
    files, names = zip(*(pair for pair in found if not vectors or pair[0] in vectors), strict=True)
    if vectors:
        return CorpusInput(files, names, None)
    first = next((file for file in files if file.stat().st_size), files[0])
    return CorpusInput(files, names, find_text_column(read_columns(first), text_column, str(first)))


def listed(places: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]") -> list[str]:
    """The paths that are given, one or several."""
    return [os.fspath(place) for place in ([places] if isinstance(places, str | os.PathLike) else places)]


def vectors_column(columns: dict[str, str], text_column: str | None) -> str | None:
    """The column of a .parquet file that is taken for vectors: `vectors`, or where there is no text, `embedding`.

    Args:
        columns: what they hold, as of `read_columns`.
        text_column: that the user named, which makes it a file of text.
    """
    if text_column is not None:
        return None
    text = "text" in columns.values()
    return next((name for name in COLUMNS if name in columns and (name == VECTORS or not text)), None)


def check_same_rows(shard: Shard, rows: Block) -> None:
    """Refuse to go on with other rows than those that a shard was made of.

    Raises:
        ValueError: if these are others.
    """
    if (shard.rows, shard.rows_checksum) != (len(rows), rows_checksum(rows)):
        raise other_rows(shard.first_row)


def other_rows(first: int) -> ValueError:
    """The error for an input that is not that of the call to go on with, from this row on."""
    return ValueError(
        f"`input` must be that of before to resume, got other rows from row {first} on; delete the output to begin "
        "anew."
    )


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
    taken = list(files_inside(place, INPUT_FILES, "input"))
    if not taken:
        raise ValueError(f"`input` must be a folder of {', '.join(INPUT_FILES)} files, got {str(place)!r}; add some.")
    return [(file, file.relative_to(place).as_posix()) for file in taken]


def _holds_vectors(file: Path, text_column: str | None) -> bool:
    suffix = file.suffix.lower()
    return suffix in VECTOR_FILES or (
        suffix == ".parquet" and vectors_column(read_columns(file), text_column) is not None
    )


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


def _parts_of(files: Iterable[Path]) -> Iterator[np.ndarray]:
    """Vectors of files of one size, `(rows, size)`, float32, in parts.

    Raises:
        ValueError: naming the file that holds something else, and the row that is not finite.
    """
    size = None
    for file in files:
        row = 0
        for part in _raw_parts(file):
            if part.shape[1] != (size := size or part.shape[1]):
                raise ValueError(
                    f"`input` must be vectors of one size, got {part.shape[1]} numbers in a row of {str(file)!r} after "
                    f"files with {size}; encode them apart."
                )
            yield finite_vectors(part, str(file), row)
            row += len(part)


def _raw_parts(file: Path) -> Iterator[np.ndarray]:
    """The same as they are in a file, without empty parts."""
    try:
        for part in _READERS[file.suffix.lower()](file):
            if part.ndim == 2 and not len(part):
                continue
            if part.ndim != 2 or part.dtype.kind not in "fiu" or not part.shape[1]:
                raise ValueError(f"it has {part.dtype} of the shape {part.shape}")
            yield part
    except (ValueError, TypeError, IndexError, KeyError, EOFError, OSError, pa.ArrowException) as error:
        raise ValueError(
            f"`input` must hold vectors, (rows, size), got {str(file)!r}: {error}; write it again."
        ) from error


def _npy_parts(path: Path) -> Iterator[np.ndarray]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2:
        yield array
    for start in range(0, len(array), _TOGETHER):
        # Mapped anew each time: the kernel counts pages that were read as memory of this process while they are mapped.
        yield np.load(path, mmap_mode="r", allow_pickle=False)[start : start + _TOGETHER]


def _arrow_parts(path: Path) -> Iterator[np.ndarray]:
    shard = ArrowShard(path)
    for batch in shard.batches():
        for start in range(0, batch.num_rows, _TOGETHER):
            yield as_matrix(batch.column(shard.column).slice(start, _TOGETHER))


def _parquet_parts(path: Path) -> Iterator[np.ndarray]:
    column = vectors_column(read_columns(path), None) or VECTORS
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_TOGETHER, columns=[column]):
            yield as_matrix(batch.column(0))


_READERS = {".npy": _npy_parts, ".arrow": _arrow_parts, ".parquet": _parquet_parts}


def _regrouped(parts: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in arrays of `rows`, the last one shorter."""
    waiting: list[np.ndarray] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        while count >= rows:
            whole = np.concatenate(waiting)
            yield whole[:rows]
            waiting, count = [whole[rows:]], count - rows
    if count:
        yield np.concatenate(waiting)
