"""nucleate collapse."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from nucleate.cli.arguments import EXECUTOR, RUNS, On, from_file, parse, positional
from nucleate.recipes.collapse import RECIPES, recipe
from nucleate.spec import CollapseSpec


@dataclass(frozen=True, kw_only=True)
class CollapseOptions:
    """Train into the terminal phase, measure every layer on the way, write the run folder and its report.

    The same command again opens a finished run, and goes on with one that was stopped.
    """

    spec: Annotated[CollapseSpec, tyro.conf.arg(name="")] = field(default_factory=CollapseSpec)
    spec_file: Annotated[Path | None, tyro.conf.arg(name="spec")] = None
    """TOML file of a spec (any run folder's spec.toml, or your own) in place of a recipe; other options override it."""
    seeds: tuple[int, ...] = ()
    """One run for each of these seeds; `--seed` alone if empty."""
    jobs: int = 1
    """Processes among which the seeds are shared."""
    on: On = "here"
    """Where runs run: here, or as Ray tasks (extra `ray`; RAY_ADDRESS names a cluster)."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    report: bool = True
    """Write the HTML report at the end."""


def collapse(args: Sequence[str]) -> int:
    """Train a recipe past zero error and watch its classes collapse."""
    name, rest = positional(args, "")
    asks = "--help" in rest or "-h" in rest
    start = None if asks else from_file(rest, CollapseSpec)
    if start is not None and name:
        raise ValueError(f"name a recipe or a file, not both: {name!r} and --spec")
    start = start or recipe(name or "digits-mlp")
    if asks:
        print("for example: nucleate collapse digits-mlp --train.lr 0.05 --seeds 0 1")
        print("\nrecipes (digits-mlp if none is named):")
        print("\n".join(f"  {k:22s} {v.__doc__}" for k, v in RECIPES.items()) + "\n")
    options = parse(CollapseOptions, rest, f"nucleate collapse {start.recipe}", default=CollapseOptions(spec=start))
    spec = options.spec
    seeds = options.seeds or (spec.seed,)

    from nucleate.studies.cells import run_specs
    from nucleate.studies.tables import zero_to_end

    runs = run_specs(
        [replace(spec, seed=s) for s in seeds],
        root=options.out,
        data_root=options.data_root,
        jobs=options.jobs,
        executor=EXECUTOR[options.on],
    )
    if int(os.environ.get("RANK", "0")) > 0:
        # Another process of torchrun tells.
        return 0
    for run in runs:
        print(zero_to_end(run))
        print(f"run: {run.path}")
    if options.report:
        from nucleate.report import page

        target = runs[0].path / "report.html" if len(runs) == 1 else options.out / f"{spec.recipe}.html"
        print(f"report: {page(runs, target)}")
    return 0
