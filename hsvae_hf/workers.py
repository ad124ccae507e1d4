"""Work in several processes of this machine: each makes what it needs once, then does one task after another."""

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

import torch
from tqdm import tqdm

from hsvae_hf.console import prepare_output

_PATIENCE = 60  # seconds for a process that has closed its end to be gone
Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    make: Callable[[int], Callable[[Task], Result]], tasks: Iterable[Task], processes: int
) -> Iterator[Result]:
    """Results of tasks, as they are finished.

    One task at most is in each process, and tasks are read when one is free. The processes end with this one, by
    SIGKILL too.

    Args:
        make: called in each process with its number; gives what does a task. It, tasks and results travel by pickle.
        tasks: to do.
        processes: how many, each with its share of the threads of this one.

    Raises:
        ValueError: if a process ends before its task.
        Exception: what a task raises.
    """
    threads = max(1, torch.get_num_threads() // processes)
    workers: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}

    def next_free() -> _Worker:
        return busy.pop(cast(Connection, wait(list(busy))[0]))

    try:
        for task in tasks:
            if len(workers) < processes:
                workers.append(_Worker(make, len(workers), threads))
                worker = workers[-1]
            else:
                worker = next_free()
                yield worker.result()
            worker.send(task)
            busy[worker.connection] = worker
        while busy:
            yield next_free().result()
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


class _Worker:
    """A process and the connection to it."""

    def __init__(self, make: Callable[[int], Any], number: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, make, number, threads), daemon=True)
        with _without_interrupt():
            self.process.start()
        other.close()

    def send(self, task: Any) -> None:
        with self._told():
            self.connection.send(task)

    def result(self) -> Any:
        with self._told():
            done, value = self.connection.recv()
        if not done:
            raise value
        return value

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:  # the latter where it ended while it wrote
            self.process.join(_PATIENCE)
            remedy = "take fewer: where memory is full, the system kills some"
            if self.process.exitcode == 1:
                remedy = "read what it said above; a script calls this under `if __name__ == '__main__':`"
            raise ValueError(
                f"`num_processes` must be as many as memory and machine allow, got a process that ended with exit code "
                f"{self.process.exitcode}; {remedy}."
            ) from error


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """What is started here ignores Ctrl-C, which reaches all processes of a terminal: this one ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _work(connection: Connection, make: Callable[[int], Callable[[Any], Any]], number: int, threads: int) -> None:
    """Do tasks until the other end is closed."""
    prepare_output()
    tqdm.set_lock(threading.RLock())  # else a process that is stopped leaves a semaphore of the system
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as `hsvae_hf.cli.run`
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionResetError):  # the latter where the other process was killed
            return
        try:
            work = make(number) if work is None else work
            answer = True, work(task)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = False, error
        try:
            connection.send(answer)
        except BrokenPipeError:  # nobody waits for it any more
            return
