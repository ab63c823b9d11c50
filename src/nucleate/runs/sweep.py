"""Cells, not jobs: the same function on many cells, here or in a pool of processes, with one progress bar."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from tqdm import tqdm

Cell = TypeVar("Cell")
Result = TypeVar("Result")
Tick = Callable[[int], None]

_ticks: Any = None


def run_cells(
    work: Callable[[Cell, Tick], Result],
    cells: Sequence[Cell],
    *,
    sizes: Sequence[int],
    jobs: int = 1,
    label: str = "",
    progress: bool = True,
) -> list[Result]:
    """`[work(cell, tick) for cell in cells]`, in `jobs` processes; `tick(n)` moves the bar by n of a cell's size.

    Raises:
        ValueError: for fewer than one job. The first error of a cell is raised when the others have ended.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    with tqdm(total=sum(sizes), desc=label, disable=not progress, smoothing=0.05, unit="epoch") as bar:
        if jobs == 1 or len(cells) == 1:
            return [work(cell, lambda n: _move(bar, n)) for cell in cells]
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        listener = threading.Thread(target=_listen, args=(queue, bar), daemon=True)
        listener.start()
        try:
            with ProcessPoolExecutor(jobs, mp_context=context, initializer=_connect, initargs=(queue,)) as pool:
                futures = [pool.submit(_call, work, cell) for cell in cells]
                for future in as_completed(futures):
                    if future.exception() is not None:
                        pool.shutdown(wait=True, cancel_futures=True)
                        break
                return [future.result() for future in futures if not future.cancelled()]
        finally:
            queue.put(None)
            listener.join()


def _move(bar: Any, n: int) -> None:
    bar.update(n)


def _connect(queue: Any) -> None:
    global _ticks
    _ticks = queue


def _call(work: Callable[[Cell, Tick], Result], cell: Cell) -> Result:
    return work(cell, _ticks.put)


def _listen(queue: Any, bar: Any) -> None:
    while (n := queue.get()) is not None:
        bar.update(n)
