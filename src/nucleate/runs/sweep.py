"""Cells, not jobs: the same function on many cells, here, in processes or on a cluster, with one progress bar.

An executor only decides where a cell runs. What makes a sweep safe lies in the cells: each is a run folder with a lock
and checkpoints, so a cell whose worker was killed is simply run again and goes on where it was, a finished one returns
at once, and one that another sweep is working on is left for later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from tqdm import tqdm

from nucleate.runs.store import BusyError

Cell = TypeVar("Cell")
Result = TypeVar("Result")
Tick = Callable[[int], None]
Work = Callable[[Any, Tick], Any]
Outcome = tuple[int, Any]
"""Index of a cell, and its result or the exception that ended it."""
Executor = Literal["serial", "processes", "ray"]

DEATHS = 8
"""So many workers may die in a row without a cell coming to its end; then the sweep gives up."""
WAIT_SECONDS = 1.0
"""Between two looks at cells that other processes are working on."""


class WorkerDiedError(Exception):
    """The process that ran a cell ended: killed, out of memory, lost with its machine."""


def run_cells(
    work: Callable[[Cell, Tick], Result],
    cells: Sequence[Cell],
    *,
    sizes: Sequence[int],
    jobs: int = 1,
    executor: Executor | None = None,
    label: str = "",
    unit: str = "epoch",
    progress: bool = True,
) -> list[Result]:
    """`[work(cell, tick) for cell in cells]`, `jobs` at a time; `tick(n)` moves the bar by n of a cell's size.

    A cell that another process holds (`BusyError`) is tried again until that one has ended; a cell whose worker died
    is run again.

    Args:
        executor: serial, processes or ray; serial for one job or one cell if none is named.
        label, unit: what the bar is called and what it counts; of a sweep that fails no bar is left.

    Raises:
        ValueError: for fewer than one job, an executor that is not installed, or workers that die again and again. The
            first error of a cell is raised when the running ones have ended.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    name = executor or ("serial" if jobs == 1 or len(cells) <= 1 else "processes")
    if name not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, not {name!r}")
    results: dict[int, Any] = {}
    pending, deaths = list(range(len(cells))), 0
    with tqdm(total=sum(sizes), desc=label, disable=not progress, smoothing=0.05, unit=unit, leave=False) as bar:
        moved = [0] * len(cells)

        def tick(index: int, n: int) -> None:
            moved[index] += n
            bar.update(n)

        while pending:
            again: list[int] = []
            died = False
            for index in pending:
                # What a cell ticked before it was interrupted, it ticks again when it is resumed.
                bar.update(-moved[index])
                moved[index] = 0
            for index, outcome in EXECUTORS[name](work, cells, pending, jobs, tick):
                if isinstance(outcome, BusyError | WorkerDiedError):
                    again.append(index)
                    died |= isinstance(outcome, WorkerDiedError)
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    results[index] = outcome
                    deaths = 0
            deaths = deaths + 1 if died else deaths
            if deaths >= DEATHS:
                raise ValueError(
                    f"workers died {deaths} times in a row without ending a cell; if memory ran out, try fewer jobs"
                )
            # The others first: a cell that kills its worker must not hold them up.
            pending = again[1:] + again[:1]
            if pending and not died:
                time.sleep(WAIT_SECONDS)
        bar.leave = True
    return [results[i] for i in range(len(cells))]


def run_serially(
    work: Work, cells: Sequence[Any], pending: Sequence[int], jobs: int, tick: Callable[[int, int], None]
) -> Iterator[Outcome]:
    """One cell after another in this process."""
    for index in pending:
        try:
            yield index, work(cells[index], partial(tick, index))
        except BusyError as busy:
            yield index, busy


def _in_processes(*args: Any) -> Iterator[Outcome]:
    from nucleate.runs.processes import run_in_processes

    return run_in_processes(*args)


def _on_ray(*args: Any) -> Iterator[Outcome]:
    from nucleate.runs.cluster import run_on_ray

    return run_on_ray(*args)


EXECUTORS: dict[str, Callable[..., Iterator[Outcome]]] = {
    "serial": run_serially,
    "processes": _in_processes,
    "ray": _on_ray,
}
"""Called with (work, cells, pending indices, jobs, tick(index, n)); each yields every pending cell's outcome once."""


def share(cells: Sequence[Cell], part: str) -> list[Cell]:
    """Every n-th cell from the i-th on, for `part` "i/n": what the i-th of n jobs of an array runs.

    Raises:
        ValueError: if the part is not i/n with 1 <= i <= n.

    >>> share("abcde", "2/2")
    ['b', 'd']
    """
    i, _, n = part.partition("/")
    if not (i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise ValueError(f"--only takes i/n with i from 1 to n, as in --only 2/8, not {part!r}")
    return list(cells)[int(i) - 1 :: int(n)]
