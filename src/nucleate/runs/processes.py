"""Cells in worker processes of this machine; any of them may be killed at any time."""

from __future__ import annotations

import multiprocessing
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
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
    pool = ProcessPoolExecutor(
        min(jobs, len(pending)), mp_context=context, initializer=_begin, initargs=(writer, os.getpid())
    )
    try:
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
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        os.write(writer.fileno(), TICK.pack(-1, 0))
        listener.join()
        reader.close()
        writer.close()


def _ended(futures: dict[Future[Any], int]) -> Iterator[tuple[Future[Any], int]]:
    left = set(futures)
    while left:
        ended, left = wait(left, return_when=FIRST_COMPLETED)
        # Results before deaths: what came to its end counts.
        for future in sorted(ended, key=lambda f: f.exception() is not None):
            yield future, futures[future]


def _begin(writer: Connection, parent: int) -> None:
    global _ticks
    _ticks = writer
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    """End with the parent, so that a killed sweep leaves no worker that holds the locks of its cells."""
    while os.getppid() == parent:
        time.sleep(0.2)
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
