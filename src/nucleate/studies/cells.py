"""Specs of any study to finished runs: each spec is a cell, each cell a run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nucleate.machine.tuning import Tuning, tuned
from nucleate.runs import Run
from nucleate.runs.sweep import Executor, Tick, run_cells
from nucleate.spec.seeds import check_seeds
from nucleate.training import parallel

STUDIES: dict[str, str] = {
    "collapse": "nucleate.studies.collapse",
    "probe": "nucleate.studies.probe",
    "dense": "nucleate.studies.dense",
    "compare": "nucleate.studies.compare",
    "descent": "nucleate.studies.descent",
    "prune": "nucleate.studies.prune",
    "tickets": "nucleate.studies.tickets",
    "capacity": "nucleate.studies.capacity",
    "connectivity": "nucleate.studies.connectivity",
    "memorise": "nucleate.studies.memorise",
    "lazy": "nucleate.studies.lazy",
    "bias": "nucleate.studies.bias",
    "supermask": "nucleate.studies.supermask",
    "prune_stability": "nucleate.studies.prune_stability",
}
"""A spec's `study` -> module with `run(spec, *, root, data_root, threads, tick) -> Run` and `size(spec) -> int`; its
`UNIT` is what the size counts, where that is not epochs.

`run` returns a finished run as it is, resumes a stopped one, and calls `tick(n)` as n of the spec's size are done.
"""


@dataclass(frozen=True)
class _Cell:
    spec: Any
    root: Path
    data_root: Path | None
    threads: int | None


def run_specs(
    specs: Sequence[Any],
    *,
    root: Path,
    data_root: Path | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    threads: int | None = None,
    progress: bool = True,
    label: str = "",
) -> list[Run]:
    """Run several specs, `jobs` at a time; finished ones are opened, not run again.

    `executor` decides where: serial, processes or ray (see `run_cells`).

    `threads` of a run whose spec names none: one where several run at once, else as many as cores.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    for spec in specs:
        check_seeds(spec)
    processes = parallel.asked_for()
    if processes > 1 and (jobs > 1 or any(spec.study != "collapse" for spec in specs)):
        raise ValueError("torchrun serves nucleate collapse with --jobs 1: one training on all its processes")
    if processes > 1:
        threads = threads or max(1, len(os.sched_getaffinity(0)) // processes)
    threads = threads or (None if jobs == 1 or len(specs) == 1 else 1)
    cells = [_Cell(spec, root, data_root, threads) for spec in specs]
    sizes = [size_of(spec) for spec in specs]
    with parallel.joined():
        shown = progress and parallel.rank() == 0
        paths = run_cells(
            _work,
            cells,
            sizes=sizes,
            jobs=jobs,
            executor=executor,
            label=label or specs[0].recipe,
            unit=getattr(_study(specs[0]), "UNIT", "epoch"),
            progress=shown,
        )
    return [Run(path) for path in paths]


def size_of(spec: Any) -> int:
    """Units of a spec's work, mostly epochs: what the progress bar counts."""
    size: int = _study(spec).size(spec)
    return size


def _work(cell: _Cell, tick: Tick) -> Path:
    # Its share of the cores is for all that a run does, not for its training alone: threads beyond it only wait.
    with tuned(Tuning(threads=cell.threads)) if cell.threads else nullcontext():
        run: Run = _study(cell.spec).run(
            cell.spec, root=cell.root, data_root=cell.data_root, threads=cell.threads, tick=tick
        )
    return run.path


def _study(spec: Any) -> Any:
    return import_module(STUDIES[spec.study])
