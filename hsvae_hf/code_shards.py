"""Views of folders of shards: all rows of codes or of vectors, read when they are asked for."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from hsvae_hf.input_checks import check_positive
from hsvae_hf.shard_files import ShardFolder, spans
from hsvae_hf.shard_manifest import MANIFEST, Manifest, finishing


class Shards(ABC):
    """Rows of a folder of shards, in order, read when they are asked for.

    One shard is open at a time, an Arrow file mapped into memory.

    Args:
        folder: of the shards, which is complete.
        manifest: of the folder.
    """

    def __init__(self, folder: ShardFolder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._open: tuple[int, Any] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.folder.location!r}, shape={self.shape})"

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows, and numbers of a row."""
        return sum(shard.rows for shard in self.manifest.shards), self.manifest.width

    def __getitem__(self, rows: int | slice) -> Any:
        """Some rows, `(rows, width)`: a slice without a step, or the number of one.

        Raises:
            IndexError: if there is no row of this number.
            ValueError: for anything else.
        """
        count = self.shape[0]
        if isinstance(rows, slice):
            start, stop, step = rows.indices(count)
            if step != 1:
                raise ValueError(f"`rows` must be a slice without a step, got {rows}; slice what you get.")
            counts = [shard.rows for shard in self.manifest.shards]
            return self._joined([self._part(*span) for span in spans(counts, start, stop)])
        if not isinstance(rows, int | np.integer):
            raise ValueError(f"`rows` must be a slice or a whole number, got {rows!r:.80}; slice what you get.")
        if not -count <= rows < count:
            raise IndexError(f"row {rows} of {count}")
        return self[int(rows) % count : int(rows) % count + 1]

    def blocks(self, rows: int = 8192) -> Iterator[Any]:
        """All rows in parts of at most so many, with one shard open at a time.

        Args:
            rows: of a part, at least 1. A part does not go beyond its shard.
        """
        check_positive(rows=rows)
        for number, shard in enumerate(self.manifest.shards):
            for start in range(0, shard.rows, rows):
                yield self._part(number, start, min(start + rows, shard.rows))

    def check(self) -> None:
        """Compare all files with their checksums.

        Raises:
            ValueError: naming the first that differs.
        """
        self.folder.check(self.manifest, content=True)

    def _part(self, number: int, start: int, stop: int) -> Any:
        opened = self._open
        if opened is None or opened[0] != number:
            name = self.manifest.name(self.manifest.shards[number])
            try:
                rows = self._rows_of(self.folder.read_table(name))
                if rows.shape[0] != self.manifest.shards[number].rows:
                    raise ValueError(f"it has {rows.shape[0]} rows")
                self._open = opened = number, rows
            except (pa.ArrowException, ValueError, OSError) as error:
                raise self.folder.damage(name) from error
        return opened[1][start:stop]

    @abstractmethod
    def _rows_of(self, table: pa.RecordBatch) -> Any:
        """The rows of a shard."""

    @abstractmethod
    def _joined(self, parts: Sequence[Any]) -> Any:
        """Rows of several shards, one after the other."""


class ShardedCodes(Shards):
    """Codes of a folder of shards; `codes[10:20]` is a `scipy.sparse.csr_matrix` of its own memory."""

    def _rows_of(self, table: pa.RecordBatch) -> sparse.csr_matrix:
        indices, values = table.column("indices"), table.column("values")
        arrays = [array.to_numpy() for array in (values.values, indices.values, indices.offsets)]
        if len(arrays[1]) and not 0 <= arrays[1].min() <= arrays[1].max() < self.manifest.width:
            raise ValueError(f"`indices` must be below {self.manifest.width}, got others; the file is damaged.")
        return sparse.csr_matrix(tuple(arrays), shape=(len(table), self.manifest.width), copy=False)

    def _joined(self, parts: Sequence[sparse.csr_matrix]) -> sparse.csr_matrix:
        if len(parts) == 1:
            return parts[0]
        empty = sparse.csr_matrix((0, self.manifest.width), dtype=np.float32)
        return sparse.vstack(parts, format="csr") if parts else empty


class ShardedVectors(Shards):
    """Vectors of a folder of shards; `vectors[10:20]` is an array, float32, which cannot be written to."""

    def _rows_of(self, table: pa.RecordBatch) -> np.ndarray:
        column = table.column("vectors")
        return np.asarray(column.values.to_numpy(zero_copy_only=False)).reshape(-1, self.manifest.width)

    def _joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.manifest.width), dtype=np.float32)


def load_shards(folder: "str | os.PathLike[str]") -> ShardedCodes | ShardedVectors:
    """Codes or vectors of a folder that `encode_corpus` or `embed.py` wrote.

    Args:
        folder: path or URI.

    Raises:
        ValueError: if there are none, they are not complete, or a file is missing.
    """
    place = ShardFolder(folder)
    manifest = place.read_manifest()
    if manifest is None:
        raise ValueError(f"`folder` must hold shards, got {place.location!r} without a {MANIFEST}; encode a corpus.")
    if not manifest.complete:
        raise ValueError(
            f"`folder` must be complete, got {place.location!r} with {len(manifest.shards)} shards of a run that has "
            f"not ended; {finishing(place.location)}."
        )
    place.check(manifest)
    return (ShardedCodes if manifest.content == "codes" else ShardedVectors)(place, manifest)


def load_codes(folder: "str | os.PathLike[str]") -> ShardedCodes:
    """Codes of a folder that `encode_corpus` or `embed.py` wrote, without reading them into memory.

    Args:
        folder: path, or a URI that pyarrow opens.

    Returns:
        A view with `shape`, `codes[10:20]` as a `scipy.sparse.csr_matrix`, and `blocks()`, one after another. `Index`
        and `export` take it in place of a matrix.

    Raises:
        ValueError: if there are none, they are not complete, or a file is missing.
    """
    found = load_shards(folder)
    if not isinstance(found, ShardedCodes):
        raise ValueError(
            f"`folder` must hold codes, got {os.fspath(folder)!r} with vectors; give it as `input` to encode them."
        )
    return found
