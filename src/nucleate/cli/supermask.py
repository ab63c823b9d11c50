"""nucleate supermask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from nucleate.cli.arguments import RUNS, parse, positional
from nucleate.recipes.supermask import RECIPES, recipe
from nucleate.spec import SupermaskSpec


@dataclass(frozen=True, kw_only=True)
class SupermaskOptions:
    """Subset sums and masks on frozen weights, write the run folders and their report."""

    spec: Annotated[SupermaskSpec, tyro.conf.arg(name="")] = field(default_factory=SupermaskSpec)
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


def supermask(args: Sequence[str]) -> int:
    """Find what a random network already contains, without training a weight."""
    name, rest = positional(args, "digits-mlp")
    if "--help" in rest or "-h" in rest:
        print("recipes:\n" + "\n".join(f"  {k:22s} {v.__doc__}" for k, v in RECIPES.items()) + "\n")
    options = parse(SupermaskOptions, rest, f"nucleate supermask {name}", default=SupermaskOptions(spec=recipe(name)))
    spec = replace(options.spec, recipe=name)

    from nucleate.studies.cells import run_specs

    runs = run_specs(
        [replace(spec, seed=s) for s in options.seeds or (spec.seed,)],
        root=options.out,
        data_root=options.data_root,
        jobs=options.jobs,
    )
    for run in runs:
        for r in run.records:
            told = {k: r[k] for k in ("arm", "width", "density", "candidates") if k in r}
            print(f"{r['metric']:22s}{r['value']:12.4g}  {', '.join(f'{k} {v}' for k, v in told.items())}")
        print(f"run: {run.path}")
    if options.report:
        from nucleate.report import page

        target = runs[0].path / "report.html" if len(runs) == 1 else options.out / f"{name}.html"
        print(f"report: {page(runs, target)}")
    return 0
