"""Files and folders that are there whole or not at all; files of codes and of vectors.

Whatever ends the process, no file is half written, and one process at a time writes it.

What is not whole yet lies in a hidden folder: `.unfinished` in a folder that is written, `.NAME.unfinished` beside a
file. A lock in it tells which process writes. The kernel drops that lock when the process ends, by SIGKILL too, so that
the next one may remove what was left. (After a power failure the file system decides: nothing is forced to the disk.)
"""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from hsvae_hf.vector_files import read_vectors

if sys.platform != "win32":  # which has no such locks: there, two processes at once are not noticed
    import fcntl
logger = logging.getLogger(__name__)
UNFINISHED = ".unfinished"
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CODE_FILES = (".npz", ".parquet", ".jsonl")
_LOCK = "lock"
_held: set[Path] = set()  # the hidden folders of this process


@contextmanager
def claimed_folder(folder: str | Path, name: str = "output_dir") -> Iterator[Path]:
    """Write into `folder` as the only process. The folder is created, and removed again if nothing was written.

    Args:
        folder: the folder to write into.
        name: the argument that gave it, for the error.

    Yields:
        A hidden folder in it for what is not whole yet; it is removed at the end.

    Raises:
        ValueError: if another process writes there, or nobody can.
    """
    with _claimed(Path(folder), Path(folder) / UNFINISHED, name) as hidden:
        yield hidden


@contextmanager
def claimed_file(path: str | Path, name: str = "output") -> Iterator[Path]:
    """Write the file `path` as the only process; see `claimed_folder`."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"`{name}` must be a file, got the folder {str(path)!r}; add the name of a file.")
    with _claimed(path, path.parent / f".{path.name}{UNFINISHED}", name) as hidden:
        yield hidden


@contextmanager
def claimed_files(**paths: Path | None) -> Iterator[None]:
    """`claimed_file` of each that there is, by the name of its argument."""
    with ExitStack() as stack:
        for name, path in paths.items():
            if path is not None:
                stack.enter_context(claimed_file(path, name))
        yield


def check_output(
    path: str | Path,
    overwrite: bool,
    suffix: str | Sequence[str],
    name: str = "output",
    inputs: Iterable[str | Path | None] = (),
) -> Path:
    """The path of a result file that may be written.

    Args:
        path: the file.
        overwrite: whether the file may exist.
        suffix: the suffix that it must have, or several to choose from.
        name: the argument that gave the path.
        inputs: files and folders that the script reads; Hub ids are passed over.

    Raises:
        ValueError: if it has another suffix, is a folder, part of what is read or a file of a model, or exists and
            `overwrite` is not set.
    """
    target = Path(path)
    suffixes = [suffix] if isinstance(suffix, str) else suffix
    if target.suffix not in suffixes:
        raise ValueError(f"`{name}` must end in {' or '.join(suffixes)}, got {str(target)!r}; rename it.")
    if target.is_dir():
        raise ValueError(f"`{name}` must be a file, got the folder {str(target)!r}; add the name of a file.")
    if target.name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        raise ValueError(f"`{name}` must not be a file of a model, got {str(target)!r}; rename it.")
    for source in inputs:
        if source and Path(source).exists() and target.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"`{name}` must not be part of what is read, got {str(target)!r}; write it elsewhere.")
    if target.exists() and not overwrite:
        raise ValueError(f"`{name}` must be a new file, got {str(target)!r}; add --overwrite to replace it.")
    return target


@contextmanager
def staged_folder(folder: str | Path, name: str = "output_dir") -> Iterator[Path]:
    """A temporary folder whose files move into `folder`, one rename each, once everything is written."""
    with claimed_folder(folder, name) as hidden, tempfile.TemporaryDirectory(dir=hidden) as temporary:
        yield Path(temporary)
        with uninterrupted():
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, Path(folder) / path.name)


@contextmanager
def staged_file(path: str | Path, name: str = "output") -> Iterator[Path]:
    """A temporary path; what is written there gets the name `path` once it is whole."""
    with claimed_file(path, name) as hidden, tempfile.TemporaryDirectory(dir=hidden) as temporary:
        unfinished = Path(temporary) / Path(path).name
        yield unfinished
        os.replace(unfinished, path)


def write_json(path: str | Path, content: object, name: str = "output") -> None:
    """Write a file that is whole as soon as it has its name. Its folder is created."""
    with staged_file(path, name) as unfinished:
        unfinished.write_text(as_json(content), encoding="utf-8")


def as_json(content: object, indent: int = 2) -> str:
    """JSON for a file; numbers of numpy are written as numbers."""
    return json.dumps(content, indent=indent, default=_plain) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that Python handles wait until the end."""
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
        for number in handlers:
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            handlers[number](number, None)


@contextmanager
def _claimed(target: Path, hidden: Path, name: str) -> Iterator[Path]:
    hidden = Path(os.path.abspath(hidden))
    if hidden in _held:  # for the whole run, while this is a file of it
        yield hidden
        return
    missing = [path for path in hidden.parents if not path.exists()]
    try:
        lock = _lock(hidden)
    except OSError as error:
        _remove_empty(missing)
        if isinstance(error, BlockingIOError):
            raise ValueError(
                f"`{name}` must be written by one process at a time, got {str(target)!r}, which process "
                f"{error.filename} is writing; wait for it, stop it, or choose another name."
            ) from None
        raise ValueError(
            f"`{name}` must be a place that can be written, got {str(target)!r}: {error.strerror or error}; choose "
            "another."
        ) from error
    _held.add(hidden)
    try:
        yield hidden
    finally:
        with uninterrupted():
            _held.discard(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
            os.close(lock)
            _remove_empty(missing)


def _lock(hidden: Path) -> int:
    """The open lock of a hidden folder that holds nothing else.

    Raises:
        BlockingIOError: with the other process in the place of a file name, if there is one.
        OSError: if nothing can be written there.
    """
    while True:
        hidden.mkdir(parents=True, exist_ok=True)
        path = hidden / _LOCK
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the process that had it has just removed it
            if not hidden.exists():
                continue
            raise
        try:
            _acquire(lock, hidden)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                break
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    for path in hidden.iterdir():  # of a process that was killed
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return lock


def _acquire(lock: int, hidden: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, error.strerror, os.read(lock, 20).decode() or "?") from None
    except OSError as error:  # some network file systems
        logger.warning("%s cannot be locked (%s): see that one process at a time writes there", hidden, error.strerror)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the empty ones, the deepest first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def save_codes(path: str | Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    """Write codes to a file. It appears under its name when it is complete, and replaces what was there.

    A `.parquet` or a `.jsonl` file is written block by block. A `.npz` file takes all codes in memory, twice: about 16
    bytes for each non-zero and row.

    Args:
        path: `.npz` for a CSR matrix that `scipy.sparse.load_npz` reads; `.parquet` or `.jsonl` for rows of `indices`
            (int32) and `values` (float32).
        blocks: codes, `(rows, latent_size)` each, float32, as `encode_stream` gives.

    Returns:
        The number of rows written.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    writers = dict(zip(CODE_FILES, (_write_npz, _write_parquet, _write_jsonl), strict=True))
    if path.suffix not in writers:
        raise ValueError(f"`path` must end in one of {', '.join(CODE_FILES)}, got {str(path)!r}; rename it.")
    with staged_file(path, "path") as unfinished:
        return writers[path.suffix](unfinished, blocks)


def _write_npz(path: Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    parts = list(blocks)
    codes = sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, 0), dtype=np.float32)
    sparse.save_npz(path, codes, compressed=False)
    return int(codes.shape[0])


def _write_parquet(path: Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    schema = pa.schema({"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())})
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for block in blocks:
            writer.write_table(pa.table(code_columns(block), schema=schema))
            count += block.shape[0]
    return count


def code_columns(codes: sparse.csr_matrix) -> dict[str, pa.ListArray]:
    """The columns `indices` (lists of int32) and `values` (lists of float32) of codes `(rows, latent_size)`."""
    offsets = codes.indptr.astype(np.int32, copy=False)
    columns = {"indices": codes.indices.astype(np.int32, copy=False), "values": codes.data}
    return {name: pa.ListArray.from_arrays(offsets, array) for name, array in columns.items()}


def _write_jsonl(path: Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for block in blocks:
            for start, end in pairwise(block.indptr):
                row = {"indices": block.indices[start:end].tolist(), "values": block.data[start:end].tolist()}
                file.write(json.dumps(row) + "\n")
            count += block.shape[0]
    return count


def load_vectors(path: str | Path, argument: str = "vectors") -> np.ndarray:
    """Vectors that another program wrote, `(rows, size)` float32, all in memory.

    Args:
        path: a file or a folder, as of `hsvae_hf.vector_files.open_vectors`.
        argument: that the path was given for.

    Raises:
        ValueError: for another file, shape, or a number that is not finite.
    """
    return read_vectors(path, argument)
