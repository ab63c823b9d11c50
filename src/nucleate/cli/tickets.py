"""nucleate tickets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from nucleate.cli.arguments import EXECUTOR, RUNS, On, parse, positional
from nucleate.recipes.tickets import RECIPES, recipe
from nucleate.spec import TicketsSpec


@dataclass(frozen=True, kw_only=True)
class TicketsOptions:
    """Climb a ladder of tickets beside its controls, write the run folder and its report."""

    spec: Annotated[TicketsSpec, tyro.conf.arg(name="")] = field(default_factory=TicketsSpec)
    each: tuple[int, ...] = ()
    """One run for each of these seeds; `--seed` alone if empty."""
    jobs: int = 1
    """Processes among which the runs are shared."""
    on: On = "here"
    """Where runs run: here, or as Ray tasks (extra `ray`; RAY_ADDRESS names a cluster)."""
    margin: float = 0.01
    """Accuracy that counts as no difference in the printed verdicts."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    report: bool = True
    """Write the HTML report at the end."""


def tickets(args: Sequence[str]) -> int:
    """Find sparse networks that train as well as the dense one, with controls."""
    name, rest = positional(args, "digits-lenet")
    if "--help" in rest or "-h" in rest:
        print("recipes:\n" + "\n".join(f"  {k:22s} {v.__doc__}" for k, v in RECIPES.items()) + "\n")
    options = parse(TicketsOptions, rest, f"nucleate tickets {name}", default=TicketsOptions(spec=recipe(name)))
    spec = replace(options.spec, recipe=name)

    from nucleate.studies.cells import run_specs
    from nucleate.studies.ladder.verdict import ladder_table

    runs = run_specs(
        [replace(spec, seed=s) for s in options.each or (spec.seed,)],
        root=options.out,
        data_root=options.data_root,
        jobs=options.jobs,
        executor=EXECUTOR[options.on],
    )
    print(ladder_table(runs, options.margin))
    for run in runs:
        print(f"run: {run.path}")
    if options.report:
        from nucleate.report import page

        target = runs[0].path / "report.html" if len(runs) == 1 else options.out / f"{name}.html"
        print(f"report: {page(runs, target)}")
    return 0
