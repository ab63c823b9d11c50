"""Cells as Ray tasks: on this machine, or on a cluster whose nodes share the folder of the runs (extra `ray`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nucleate.runs.store import BusyError
from nucleate.runs.sweep import Outcome, Work, WorkerDiedError

RETRIES = 3
"""Ray itself runs a task again this often when its worker or node is lost; after that the sweep does."""


def run_on_ray(
    work: Work, cells: Sequence[Any], pending: Sequence[int], jobs: int, tick: Callable[[int, int], None]
) -> Iterator[Outcome]:
    """Outcomes as tasks end; the bar moves by whole cells.

    RAY_ADDRESS names a running cluster; without one, Ray is started here with `jobs` cores and ended afterwards. A cell
    takes one core, and the share `NUCLEATE_GPUS_PER_CELL` of a GPU if that is set.

    Raises:
        ValueError: if Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("the executor ray needs the extra: pip install 'nucleate[ray]'") from None
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {} if address else {"num_cpus": jobs, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        gpus = float(os.environ.get("NUCLEATE_GPUS_PER_CELL", "0"))
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_call)
        # The code of the work goes into the object store once, and from there once to every node.
        code = ray.put(work)
        left = {task.remote(code, cells[index]): index for index in pending}
        while left:
            (ended,), _ = ray.wait(list(left), num_returns=1)
            index = left.pop(ended)
            try:
                result, moved = ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                yield index, cause if isinstance(cause, BusyError | ValueError | OSError) else error
            except ray.exceptions.RayError:
                yield index, WorkerDiedError()
            else:
                tick(index, moved)
                yield index, result
    finally:
        if started:
            ray.shutdown()


def _call(work: Work, cell: Any) -> tuple[Any, int]:
    moved: list[int] = []
    return work(cell, moved.append), sum(moved)
