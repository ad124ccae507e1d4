"""Files of shards: codes or vectors of many rows as a folder of files with a manifest.

An Arrow file is mapped into memory and read without a copy. A Parquet file is smaller, and more programs read it.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from scipy import sparse

from hsvae_hf.files import UNFINISHED, as_json, code_columns
from hsvae_hf.shard_manifest import MANIFEST, SHARD_FILE, VERSION, Manifest, Shard, damage, file_name, parse_manifest

Rows: TypeAlias = "sparse.csr_matrix | np.ndarray"


class ShardFolder:
    """Files of a folder of this machine, or of a URI that pyarrow knows, such as `s3://bucket/codes`.

    Args:
        location: path or URI.
        argument: that gave it, for errors.

    Raises:
        ValueError: if pyarrow knows no such place.
    """

    def __init__(self, location: "str | os.PathLike[str]", argument: str = "folder") -> None:
        self.location, self.argument = os.fspath(location), argument
        self.files, self.path = filesystem(self.location, argument)
        self.local = isinstance(self.files, pyarrow.fs.LocalFileSystem)

    def is_within(self, location: str) -> bool:
        """Whether it is this folder, or in it."""
        files, path = filesystem(location, "input")
        if self.local and isinstance(files, pyarrow.fs.LocalFileSystem):
            return Path(path).is_dir() and Path(self.path).resolve().is_relative_to(Path(path).resolve())
        return files.equals(self.files) and f"{self.path}/".startswith(f"{path}/")

    def is_empty(self) -> bool:
        """Whether there is nothing but what an interrupted process left."""
        found = self.files.get_file_info(pyarrow.fs.FileSelector(self.path, allow_not_found=True))
        return all(entry.base_name == UNFINISHED for entry in found)

    def remove_others(self, manifest: Manifest) -> None:
        """Remove shards that the manifest does not name: the process that wrote them ended before they were in it."""
        named = {manifest.name(shard) for shard in manifest.shards}
        for entry in self.files.get_file_info(pyarrow.fs.FileSelector(self.path)):
            if SHARD_FILE.fullmatch(entry.base_name) and entry.base_name not in named:
                self.files.delete_file(entry.path)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; a store of objects shows one only when it is whole."""
        if not self.local:
            self._write(name, content)
            return
        staged = f"{UNFINISHED}/{uuid.uuid4().hex}"
        self._write(staged, content)
        self.move(staged, name)

    def write_shard(self, form: str, shard: Shard, rows: Rows) -> Shard:
        """Write a shard; on this machine under a name that `finish` replaces.

        Args:
            form: suffix of the file.
            shard: without what is known of its file.
            rows: of it, codes or vectors.

        Returns:
            The shard with what is known of its file.
        """
        content = _serialized(_table(rows, shard.first_row), form)
        staged = f"{UNFINISHED}/{uuid.uuid4().hex}" if self.local else None
        self._write(staged or file_name(shard.number, form), content)
        return replace(shard, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), staged=staged)

    def finish(self, manifest: Manifest, shard: Shard) -> Shard:
        """Give the file of a shard its name.

        Raises:
            ValueError: if it is not here.
        """
        if shard.staged is None:
            return shard
        if not Path(self.path, shard.staged).exists():
            raise ValueError(
                f"`{self.argument}` must be a folder that all machines share, got {self.location!r}, where "
                f"{manifest.name(shard)} is missing after another process wrote it; name a shared one, or a URI."
            )
        self.move(shard.staged, manifest.name(shard))
        return replace(shard, staged=None)

    def move(self, old: str, new: str) -> None:
        """Rename a file of this machine."""
        os.replace(Path(self.path, old), Path(self.path, new))

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest."""
        content = {"version": VERSION, **asdict(manifest)}
        for entry in content["shards"]:
            del entry["staged"]
            entry["file"] = manifest.name(Shard(**entry))
        self.write(MANIFEST, as_json(content, indent=1).encode())

    def read_manifest(self) -> Manifest | None:
        """The manifest; None if there is none.

        Raises:
            ValueError: if it is damaged.
        """
        if self.size(MANIFEST) is None:
            return None
        try:
            return parse_manifest(self.read(MANIFEST))
        except ValueError as error:
            raise ValueError(
                f"`{self.argument}` must hold a manifest of this package, got {self.location!r} with a {MANIFEST} that "
                f"is none: {error}; delete the folder, or name another."
            ) from error

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        found = self.files.get_file_info(f"{self.path}/{name}")
        return int(found.size) if found.type == pyarrow.fs.FileType.File else None

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self.files.open_input_file(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def read_table(self, name: str) -> pa.RecordBatch:
        """The rows of a shard, an Arrow file of this machine mapped into memory."""
        place = f"{self.path}/{name}"
        source = pa.memory_map(place) if self.local else self.files.open_input_file(place)
        if name.endswith(".arrow"):
            return pa.ipc.open_file(source).get_batch(0)
        with source:
            return pq.read_table(source).combine_chunks().to_batches()[0]

    def check(self, manifest: Manifest, content: bool = False) -> None:
        """Refuse a folder whose files are not those of the manifest.

        Args:
            manifest: of the folder.
            content: whether to read the files and compare their checksums too.

        Raises:
            ValueError: naming the file that differs.
        """
        for shard in manifest.shards:
            if not self.is_whole(manifest, shard, content):
                raise self.damage(manifest.name(shard))

    def is_whole(self, manifest: Manifest, shard: Shard, content: bool) -> bool:
        """Whether the file of a shard is that of the manifest; the arguments are those of `check`."""
        name = manifest.name(shard)
        same = self.size(name) == shard.bytes
        return same and not (content and hashlib.sha256(self.read(name)).hexdigest() != shard.sha256)

    def damage(self, name: str) -> ValueError:
        """The error for a file that is not that of the manifest."""
        return damage(self.location, name, self.argument)

    def _write(self, name: str, content: bytes) -> None:
        with self.files.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content)


def filesystem(location: str, argument: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path or a URI, and the path in it.

    Raises:
        ValueError: if pyarrow knows no such place.
    """
    if "://" not in location:
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(location))
    try:
        files, path = pyarrow.fs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"`{argument}` must be a path or a URI that pyarrow opens, got {location!r}: {error}; check it."
        ) from error
    return files, path.rstrip("/")


def spans(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Which rows of which parts the rows from `start` to `stop` are.

    Args:
        counts: rows of each part.
        start: the first row.
        stop: the row after the last.

    Yields:
        Number of a part, and its first row and the row after its last.

    >>> list(spans([4, 0, 4], 3, 6))
    [(0, 3, 4), (2, 0, 2)]
    """
    first = 0
    for number, count in enumerate(counts):
        begin, end = max(start - first, 0), min(stop - first, count)
        if begin < end:
            yield number, begin, end
        first += count


def _table(rows: Rows, first_row: int) -> pa.RecordBatch:
    """Rows with their numbers: `id`, and `indices` and `values` of codes, or `vectors`."""
    columns: dict[str, Any] = {"id": np.arange(first_row, first_row + rows.shape[0])}
    if isinstance(rows, np.ndarray):
        columns["vectors"] = pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(rows).ravel(), rows.shape[1])
    else:
        columns |= code_columns(rows)
    return pa.record_batch(columns)


def _serialized(table: pa.RecordBatch, form: str) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    if form == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)
    else:
        pq.write_table(pa.Table.from_batches([table]), sink)
    return sink.getvalue()
