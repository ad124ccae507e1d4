"""The end of every script: one clear line for bad input, for a full memory or disk, and for a signal."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm import tqdm

from hsvae_hf.console import prepare_output
from hsvae_hf.files import SIGNALS
from hsvae_hf.models.configuration_text_vae import refusal
from hsvae_hf.models.sources import HTTP_ERROR

# What bad input raises. Anything else is a fault of the program, and keeps its traceback.
_INPUT_ERRORS = (ValueError, OSError, ImportError, DatasetsError, StrictDataclassError, SafetensorError, HTTP_ERROR)
_NO_MEMORY: tuple[str, ...] = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
)
_NO_MEMORY += ("can't start new thread", "is killed by signal: killed")  # a worker that reads data
_NO_SPACE = ("no space left", "file too large", "quota exceeded", "pytorchstreamwriter failed", "unexpected pos")
_PEER_ENDED = ("connection closed by peer", "connection reset by peer", "dataloader worker")
_GRACE = 2.0  # seconds in which another signal changes nothing: cleaning up is not to be interrupted


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(main: Callable[[], None]) -> None:
    """Run a script's `main` so that it ends in one line on stderr, whatever the user or the machine does.

    Exit codes: 2 for input that it cannot work with, or where memory or disk are full; 130 for Ctrl-C, 143 for SIGTERM,
    129 for SIGHUP. A fault of the program keeps its traceback.
    """
    prepare_output()
    torch.set_flush_denormal(True)  # denormals make CPU kernels many times slower
    handlers: dict[int, Any] = {}
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background
            handlers[number] = signal.signal(number, _stopper())
    try:
        main()
    except KeyboardInterrupt as stop:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        handlers = {}
        number = getattr(stop, "number", signal.SIGINT)
        _close_bars()
        if os.environ.get("RANK", "0") == "0":  # one line for all processes of a run
            print(f"stopped by {signal.Signals(number).name}; no file is half written", file=sys.stderr)
        raise SystemExit(128 + number) from None
    except Exception as error:
        line = explanation(error)
        if line is None:
            raise
        _close_bars()
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _close_bars() -> None:
    """End the lines of progress bars, so that what is said next has a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _stopper() -> Callable[[int, FrameType | None], None]:
    """A handler that raises `Stopped` in the process that made it."""
    process, last = os.getpid(), -_GRACE

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != process:  # one that reads data: it ends with the process that made it
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if now - last < _GRACE:
            return
        last = now
        raise Stopped(number)

    return stop


def explanation(error: BaseException) -> str | None:
    """What an error means to a user, in one line; None for a fault of the program."""
    causes = list(_chain(error))
    if any(isinstance(cause, MemoryError) or _says(cause, _NO_MEMORY, errno.ENOMEM) for cause in causes):
        return (
            "the memory ran out; lower the batch size (in training --per_device_train_batch_size and "
            "--per_device_eval_batch_size, else --batch_size), --max_length or the number of rows."
        )
    if any(_says(cause, _NO_SPACE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG) for cause in causes):
        return "the disk is full or the file too large; free some space, or write elsewhere. No file is half written."
    if isinstance(error, RuntimeError) and _says(error, _PEER_ENDED):
        return "another process of this run has ended; its own message, if there is one, says why."
    if not isinstance(error, _INPUT_ERRORS):
        return None
    return refusal(error) or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _says(error: BaseException, words: tuple[str, ...], *codes: int) -> bool:
    if isinstance(error, OSError) and error.errno in codes:
        return True
    kinds = (OSError, RuntimeError, SafetensorError)
    return isinstance(error, kinds) and any(word in str(error).lower() for word in words)
