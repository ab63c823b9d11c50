"""nucleate capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from nucleate.cli.arguments import RUNS, parse, positional
from nucleate.recipes.capacity import RECIPES, recipe
from nucleate.spec import CapacitySpec


@dataclass(frozen=True, kw_only=True)
class CapacityOptions:
    """Train in subspaces of growing dimension, write the run folders and their report."""

    spec: Annotated[CapacitySpec, tyro.conf.arg(name="")] = field(default_factory=CapacitySpec)
    seeds: tuple[int, ...] = ()
    """One run for each of these seeds; `--seed` alone if empty."""
    jobs: int = 1
    """Processes among which the seeds are shared."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    report: bool = True
    """Write the HTML report at the end."""


def capacity(args: Sequence[str]) -> int:
    """In how few directions of its weights can a network be trained?"""
    name, rest = positional(args, "digits-lenet")
    if "--help" in rest or "-h" in rest:
        print("recipes:\n" + "\n".join(f"  {k:22s} {v.__doc__}" for k, v in RECIPES.items()) + "\n")
    options = parse(CapacityOptions, rest, f"nucleate capacity {name}", default=CapacityOptions(spec=recipe(name)))
    spec = replace(options.spec, recipe=name)

    from nucleate.studies.cells import run_specs

    runs = run_specs(
        [replace(spec, seed=s) for s in options.seeds or (spec.seed,)],
        root=options.out,
        data_root=options.data_root,
        jobs=options.jobs,
    )
    for run in runs:
        for r in run.select(metric="accuracy"):
            print(
                f"{r['arm']:8s}{r['dimension']:9,d} directions ({100 * r['share']:6.2f} %)  {100 * r['value']:6.2f} %"
            )
        print(f"run: {run.path}")
    if options.report:
        from nucleate.report import page

        target = runs[0].path / "report.html" if len(runs) == 1 else options.out / f"{name}.html"
        print(f"report: {page(runs, target)}")
    return 0
