"""A corpus on several machines: Ray Data starts a worker for each share of them, gives out shards, and tries again.

Importing this module needs no Ray. Shards are ranges of rows of Parquet files, which workers read themselves.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from hsvae_hf.corpus_input import Block, check_same_rows, finite_vectors, listed, other_rows, vectors_column
from hsvae_hf.extras import require
from hsvae_hf.shard_encoder import Job, ShardEncoder
from hsvae_hf.shard_files import filesystem, spans
from hsvae_hf.shard_manifest import MANIFEST, Shard, vector_shards
from hsvae_hf.text_files import find_text_column, schema_columns
from hsvae_hf.vector_files import as_matrix


class ParquetRows:
    """Rows of Parquet files in order, read by their numbers.

    Args:
        places: files, and folders of them, paths or URIs.
        text_column: column of the sentences, if not found by name.

    Raises:
        ValueError: if there is no such file, or it has no such column.
    """

    def __init__(self, places: Any, text_column: str | None) -> None:
        given = listed(places)
        self.files = [pair for place in given for pair in _parquet_files(place)]
        if not self.files:
            raise ValueError(f"`input` must be .parquet files for Ray, got {given}; convert it to Parquet.")
        columns = self._columns(0)
        vectors = vectors_column(columns, text_column)
        self.text = vectors is None
        self.column = vectors or find_text_column(columns, text_column, self.files[0][1])

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each file."""
        return [self._footer(number).num_rows for number in range(len(self.files))]

    def described(self) -> dict[str, Any]:
        """Names and bytes of the files, and the column."""
        sizes = [files.get_file_info(path).size for files, path in self.files]
        names = [path for _, path in self.files]
        return {"files": [list(pair) for pair in zip(names, sizes, strict=True)], "text_column": self.column}

    def read(self, start: int, stop: int) -> Block:
        """Rows from `start` to `stop`, as far as there are any.

        Raises:
            ValueError: naming the file that is damaged, or holds something else than text or vectors.
        """
        parts: list[Any] = []
        for number, first, last in spans(self.counts, start, stop):
            parts += self._parts(number, first, last)
        if self.text:
            return [text for part in parts for text in part]
        sizes = {part.shape[1] for part in parts}
        if len(sizes) > 1:
            paths = [self.files[number][1] for number, *_ in spans(self.counts, start, stop)]
            raise ValueError(f"`input` must be vectors of one size, got {sorted(sizes)} in {paths}; encode them apart.")
        return np.concatenate(parts)

    def _parts(self, number: int, start: int, stop: int) -> Iterator[Any]:
        """Rows of a file, sentences or vectors: row groups that hold them are read, the others are passed over."""
        path = self.files[number][1]
        kind = self._columns(number).get(self.column)
        if kind is None or (self.text and kind != "text"):
            found = "none such" if kind is None else "one of something else"
            raise ValueError(
                f"`input` must have a column `{self.column}` of {'strings' if self.text else 'vectors'} in every file, "
                f"got {found} in {path!r}; give files that are alike."
            )
        for row, chunk in self._chunks(number, start, stop):
            if chunk.null_count:
                wrong = row + int(chunk.is_null().index(True).as_py())
                raise ValueError(
                    f"`{self.column}` must hold a {'string' if self.text else 'vector'} in every row, got None in row "
                    f"{wrong} of {path!r}, counted from 0; repair or drop such rows."
                )
            with _intact(path):
                part = chunk.to_pylist() if self.text else as_matrix(chunk)
            yield part if self.text else finite_vectors(part, path, row)

    def _chunks(self, number: int, start: int, stop: int) -> Iterator[tuple[int, pa.Array]]:
        """Parts of the column of a file, each with the number of its first row."""
        files, path = self.files[number]
        with _intact(path), files.open_input_file(path) as source, pq.ParquetFile(source) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            for group, first, last in spans(counts, start, stop):
                row = sum(counts[:group]) + first
                column = file.read_row_group(group, columns=[self.column]).column(0).slice(first, last - first)
                for chunk in column.chunks:
                    yield row, chunk
                    row += len(chunk)

    def _columns(self, number: int) -> dict[str, str]:
        return schema_columns(self._footer(number).schema.to_arrow_schema())

    def _footer(self, number: int) -> pq.FileMetaData:
        files, path = self.files[number]
        with _intact(path), files.open_input_file(path) as source:
            return pq.read_metadata(source)


@contextmanager
def _intact(path: str) -> Iterator[None]:
    """Say in one line which file cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise ValueError(f"`input` must be intact .parquet files, got {path!r}: {error}; write it again.") from error


def _parquet_files(place: str) -> list[tuple[pyarrow.fs.FileSystem, str]]:
    files, path = filesystem(place, "input")
    found = files.get_file_info(path)
    if found.type == pyarrow.fs.FileType.Directory:
        inside = files.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    else:
        inside = [found] if found.type == pyarrow.fs.FileType.File else []
    here = {entry.base_name: entry.size for entry in inside if entry.path == f"{path}/{entry.base_name}"}
    shards = vector_shards(here, lambda: _content(files, f"{path}/{MANIFEST}"), place, "input")
    if shards is not None:
        return [(files, f"{path}/{name}") for name in shards if name.endswith(".parquet")]
    hidden = [entry.path for entry in inside if "/." in entry.path.removeprefix(path)]
    return [
        (files, entry.path)
        for entry in sorted(inside, key=lambda entry: entry.path)
        if entry.path.endswith(".parquet") and entry.path not in hidden
    ]


def _content(files: pyarrow.fs.FileSystem, path: str) -> bytes:
    with files.open_input_file(path) as source:
        return bytes(source.read())


class RayCorpus:
    """Parquet files, and workers that Ray starts; see `encode_corpus`."""

    def __init__(self, places: Any, text_column: str | None, num_processes: int, address: str | None) -> None:
        require("ray", extra="ray")
        self.rows = ParquetRows(places, text_column)
        self.num_processes, self.address = num_processes, address

    def described(self) -> dict[str, Any]:
        """Names and bytes of the files, and the column."""
        return self.rows.described()

    def some(self, rows: int) -> Block:
        """The first rows, at most so many."""
        if not sum(self.rows.counts):
            raise ValueError(f"`input` must hold at least one row, got none in {self.rows.files[0][1]!r}; add some.")
        return self.rows.read(0, rows)

    def shards(self, encoder: ShardEncoder, shard_rows: int, done: dict[int, Shard]) -> Iterator[Shard]:
        """Shards that are not done, as they are finished. Workers compare the rows of the others with those of then."""
        total = sum(self.rows.counts)
        starts = range(0, total, shard_rows)
        if any(number >= len(starts) for number in done):
            raise other_rows(total)
        ranges = [
            {"number": number, "start": start, "stop": min(start + shard_rows, total)}
            for number, start in enumerate(starts)
        ]
        job = replace(encoder.job, fingerprint=encoder.fingerprint)
        return _in_ray(job, self.rows, ranges, done, self.num_processes, self.address)


def _in_ray(
    job: Job,
    rows: ParquetRows,
    ranges: Sequence[dict[str, int]],
    done: dict[int, Shard],
    num_processes: int,
    address: str | None,
) -> Iterator[Shard]:
    """Shards of ranges that are not done, by as many workers; one that ends is replaced, its shards are done again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        dashboard, handler = None if address else False, signal.getsignal(signal.SIGTERM)
        ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in the place of the script's
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        dataset = ray.data.from_items(list(ranges), override_num_blocks=len(ranges))  # a block is what is done again
        results = dataset.map_batches(
            ShardActor,
            fn_constructor_args=(job, rows, done),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(num_processes, len(ranges)), max_tasks_in_flight_per_actor=2),
            num_cpus=0 if gpus else 1,
            num_gpus=gpus,
        )
        for row in results.iter_rows():
            told = json.loads(row["told"])
            if "refused" in told:
                raise ValueError(told["refused"])
            if told["number"] not in done:
                yield Shard(**told)
    finally:
        if started:
            ray.shutdown()


class ShardActor:
    """A worker of Ray: one model, one range of rows after another."""

    def __init__(self, job: Job, rows: ParquetRows, done: dict[int, Shard]) -> None:
        self.job, self.rows, self.done = job, rows, done

    @cached_property
    def encoder(self) -> ShardEncoder:
        """The model, loaded with the first range, so that what is wrong with it is told as well."""
        return ShardEncoder(self.job)

    def __call__(self, ranges: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode and write the shards of `ranges` that are not done. Each is told as JSON, or what is wrong with it."""
        told: list[dict[str, Any]] = []
        columns = (ranges[name].tolist() for name in ("number", "start", "stop"))
        for number, start, stop in zip(*columns, strict=True):
            try:
                rows = self.rows.read(start, stop)
                found = self.done.get(number)
                if found is None:
                    found = self.encoder((number, start, rows))
                else:
                    check_same_rows(found, rows)
                told.append(asdict(found))
            except ValueError as error:  # Ray would wrap it beyond recognition, and try again
                told.append({"refused": str(error)})
        return {"told": np.array([json.dumps(one) for one in told])}
