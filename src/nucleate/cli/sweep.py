"""nucleate sweep."""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from nucleate.cli.arguments import RUNS, parse, positionals
from nucleate.recipes.named import named
from nucleate.spec import from_dict, to_dict

STUDIES = ("collapse", "compare", "descent")
"""Studies with recipes: `nucleate.recipes.<study>.RECIPES`."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Run one cell for every seed and every combination of the values given; what is finished is not run again.

    Any number of sweeps may run on the same folder, here or on other machines: each cell is run by one of them.
    """

    grid: tuple[str, ...] = ()
    """Fields and their values, for example train.lr=0.1,0.01 model.width=64,256."""
    seeds: tuple[int, ...] = (0,)
    """One cell for each of these, where the study's spec has a seed."""
    jobs: int = len(os.sched_getaffinity(0))
    """Cells at a time, each with one thread."""
    executor: Literal["serial", "processes", "ray"] = "processes"
    """Where cells run: here one by one, in processes, or as Ray tasks (extra `ray`; RAY_ADDRESS names a cluster,
    NUCLEATE_GPUS_PER_CELL the share of a GPU that a cell takes)."""
    only: str = "1/1"
    """i/n: every n-th cell from the i-th on, for array jobs."""
    dry_run: bool = False
    """List the missing cells and what they would take; run nothing."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""


def sweep(args: Sequence[str]) -> int:
    """Run a study over a grid of values and seeds, in processes or on a cluster."""
    words, rest = positionals(args)
    options = parse(SweepOptions, rest, "nucleate sweep STUDY RECIPE", default=SweepOptions())
    if len(words) != 2 or words[0] not in STUDIES:
        raise ValueError(f"write: nucleate sweep STUDY RECIPE, with a study of {', '.join(STUDIES)}")
    spec = replace(named(import_module(f"nucleate.recipes.{words[0]}").RECIPES, words[1]), recipe=words[1])
    from nucleate.runs.sweep import share

    specs = share(cells_of(spec, options.grid, options.seeds), options.only)
    if not specs:
        raise ValueError(f"--only {options.only} leaves no cell")
    if options.dry_run:
        return _tell(specs, options)
    from nucleate.studies.cells import run_specs

    runs = run_specs(
        specs,
        root=options.out,
        data_root=options.data_root,
        jobs=options.jobs,
        executor=options.executor,
        threads=1,
        label=f"{words[0]} {words[1]}",
    )
    print("\n".join(str(run.path) for run in runs))
    return 0


def cells_of(spec: Any, grid: Sequence[str], seeds: Sequence[int]) -> list[Any]:
    """One spec for every combination of the grid's values and every seed.

    Raises:
        ValueError: for a grid entry that is not field=value,value, a field or value that the spec has not, or one that
            is named twice.

    >>> from nucleate.spec import CollapseSpec
    >>> [(c.train.lr, c.seed) for c in cells_of(CollapseSpec(), ["train.lr=1,2"], [0, 1])]
    [(1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1)]
    """
    axes: dict[str, list[Any]] = {}
    for entry in grid:
        name, sign, values = entry.partition("=")
        if not sign or not name or not values:
            raise ValueError(f"--grid takes field=value,value, as in train.lr=0.1,0.01, not {entry!r}")
        if name in axes:
            raise ValueError(f"--grid names {name} twice; give all its values at once, as in train.lr=0.1,0.01")
        axes[name] = [_value(v) for v in values.split(",")]
    if hasattr(spec, "seed"):
        if "seed" in axes:
            raise ValueError("--grid names seed; the seeds of a sweep go with --seeds, as in --seeds 0 1")
        axes["seed"] = list(seeds)
    for name, given in axes.items():
        twice = [value for i, value in enumerate(given) if value in given[:i]]
        if twice:
            raise ValueError(f"{name} is given {twice[0]!r} twice; each of its values makes one cell")
    cells = []
    for choice in itertools.product(*axes.values()):
        table = to_dict(spec)
        for name, value in zip(axes, choice, strict=True):
            *path, last = name.split(".")
            inner = table
            for part in path:
                inner = inner.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise ValueError(f"--grid names {name!r}, but {part!r} has no fields")
            inner[last] = value
        cells.append(from_dict(type(spec), table))
    return cells


def _value(text: str) -> Any:
    """A number, true or false as in TOML; text otherwise."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _tell(specs: Sequence[Any], options: SweepOptions) -> int:
    from nucleate.studies.estimate import estimate

    found = estimate(specs, root=options.out, data_root=options.data_root)
    print(f"{len(specs)} cells, {len(found.missing)} missing")
    names = [entry.partition("=")[0] for entry in options.grid]
    for spec in found.missing:
        seed = f"seed={spec.seed}" if hasattr(spec, "seed") else ""
        print("  " + " ".join([f"{spec.study} {spec.recipe}", seed, *(f"{n}={_field(spec, n)}" for n in names)]))
    if found.missing:
        jobs = 1 if options.executor == "serial" else min(options.jobs, len(found.missing))
        print(
            f"about {_duration(found.seconds / jobs)} with {jobs} at a time, "
            f"{jobs * found.memory / 2**30:.1f} GiB of memory (measured on {found.basis})"
        )
    return 0


def _field(spec: Any, name: str) -> Any:
    for part in name.split("."):
        spec = getattr(spec, part)
    return spec


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
