"""Commands that run a recipe of a study: seeds side by side in one run, or one run each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nucleate.cli.arguments import EXECUTOR, RUNS, On, parse, positional
from nucleate.recipes.named import named


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run a recipe, write the run folder and its report."""

    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    on: On = "here"
    """Where runs run: here, or as Ray tasks (extra `ray`; RAY_ADDRESS names a cluster)."""
    report: bool = True
    """Write the HTML report at the end."""


@dataclass(frozen=True, kw_only=True)
class Inside(Options):
    """Options of a study whose spec holds its seeds, because all are trained side by side in one run."""

    jobs: int | None = None
    """Cores that the seeds, which are trained side by side, may use; all if none."""


@dataclass(frozen=True, kw_only=True)
class Apart(Options):
    """Options of a study with one run a seed."""

    seeds: tuple[int, ...] = ()
    """One run for each of these seeds; `--seed` alone if empty."""
    jobs: int = 1
    """Processes among which the seeds are shared."""


def run_recipe(
    command: str,
    args: Sequence[str],
    recipes: Mapping[str, Callable[[], Any]],
    *,
    default: str,
    tell: str,
    seeds: Literal["inside", "apart"] = "inside",
) -> int:
    """Parse a recipe's name and its options, run it, print what `tell` makes of the run, write the report.

    `tell` is "module:function" of a run to a text, imported when the run is done: help comes without torch.
    """
    name, rest = positional(args, default)
    if "--help" in rest or "-h" in rest:
        print("recipes:\n" + "\n".join(f"  {k:24s} {v.__doc__}" for k, v in recipes.items()) + "\n")
    spec = named(recipes, name)
    kind = make_dataclass(
        "Options",
        [("spec", Annotated[type(spec), tyro.conf.arg(name="")], field(default=spec))],
        bases=(Inside if seeds == "inside" else Apart,),
        frozen=True,
        kw_only=True,
    )
    kind.__doc__ = Options.__doc__
    options = parse(kind, rest, f"nucleate {command} {name}", default=kind(spec=spec))

    from nucleate.studies.cells import run_specs

    spec = replace(options.spec, recipe=name)
    where = {"root": options.out, "data_root": options.data_root, "executor": EXECUTOR[options.on]}
    if seeds == "inside":
        runs = run_specs([spec], threads=options.jobs, **where)
    else:
        runs = run_specs([replace(spec, seed=s) for s in options.seeds or (spec.seed,)], jobs=options.jobs, **where)
    module, _, function = tell.partition(":")
    for run in runs:
        print(getattr(import_module(module), function)(run))
        print(f"run: {run.path}")
    if options.report:
        from nucleate.report import page

        target = runs[0].path / "report.html" if len(runs) == 1 else options.out / f"{name}.html"
        print(f"report: {page(runs, target)}")
    return 0
