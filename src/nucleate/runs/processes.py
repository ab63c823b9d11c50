"""Cells in worker processes of this machine; any of them may be killed at any time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from nucleate.runs.store import BusyError
from nucleate.runs.sweep import Outcome, Work, WorkerDiedError

TICK = struct.Struct("=qq")
"""A tick on its way to the parent: index of the cell, how far it moved."""

_ticks: Connection | None = None


def run_in_processes(
    work: Work, cells: Sequence[Any], pending: Sequence[int], jobs: int, tick: Callable[[int, int], None]
) -> Iterator[Outcome]:
    """Outcomes as cells end. When a worker dies, the cells that have not ended give `WorkerDiedError`."""
    context = multiprocessing.get_context("spawn")
    # A pipe and not a queue: a worker killed while it holds a queue's lock would stop all others. Writes of so few
    # bytes are atomic and need none.
    reader, writer = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(reader, tick), daemon=True)
    listener.start()
    leash, hand = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(jobs, len(pending)), mp_context=context, initializer=_begin, initargs=(writer, os.getpid(), leash)
    )
    try:
        with _interrupts_held_back():
            futures = {pool.submit(_call, work, index, cells[index]): index for index in pending}
        for future, index in _ended(futures):
            error = future.exception()
            if error is None or isinstance(error, BusyError):
                yield index, error or future.result()
            elif isinstance(error, BrokenProcessPool):
                yield index, WorkerDiedError()
            else:
                pool.shutdown(wait=True, cancel_futures=True)
                yield index, error
                return
    except (KeyboardInterrupt, GeneratorExit):
        hand.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        os.write(writer.fileno(), TICK.pack(-1, 0))
        listener.join()
        for end in (reader, writer, leash, hand):
            end.close()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes that a Ctrl-C does not reach, not even while they import: it is for the parent to end them.

    Whoever is started has the signal blocked for good; to the parent one that came meanwhile is delivered afterwards.
    """
    # When it starts, it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(futures: dict[Future[Any], int]) -> Iterator[tuple[Future[Any], int]]:
    left = set(futures)
    while left:
        ended, left = wait(left, return_when=FIRST_COMPLETED)
        # Results before deaths: what came to its end counts.
        for future in sorted(ended, key=lambda f: f.exception() is not None):
            yield future, futures[future]


def _begin(writer: Connection, parent: int, leash: Connection) -> None:
    global _ticks
    _ticks = writer
    threading.Thread(target=_follow, args=(parent, leash), daemon=True).start()


def _follow(parent: int, leash: Connection) -> None:
    """End with the parent or when it closes its end of the leash: no worker is left that holds the locks of cells."""
    while os.getppid() == parent and not leash.poll(0.2):
        pass
    os._exit(1)


def _call(work: Work, index: int, cell: Any) -> Any:
    assert _ticks is not None
    out = _ticks.fileno()
    return work(cell, lambda n: _write(out, TICK.pack(index, n)))


def _write(out: int, message: bytes) -> None:
    os.write(out, message)


def _listen(reader: Connection, tick: Callable[[int, int], None]) -> None:
    file = reader.fileno()
    while True:
        message = os.read(file, TICK.size)
        if len(message) < TICK.size:
            return
        index, n = TICK.unpack(message)
        if index < 0:
            return
        tick(index, n)
