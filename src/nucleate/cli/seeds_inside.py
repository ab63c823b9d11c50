"""Commands of studies whose spec holds its seeds, because all are trained side by side in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from nucleate.cli.arguments import RUNS, parse, positional
from nucleate.recipes.named import named


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run a recipe, write the run folder and its report."""

    jobs: int | None = None
    """Cores that the seeds, which are trained side by side, may use; all if none."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    report: bool = True
    """Write the HTML report at the end."""


def run_recipe(
    command: str,
    args: Sequence[str],
    recipes: Mapping[str, Callable[[], Any]],
    *,
    default: str,
    tell: str,
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
        bases=(Options,),
        frozen=True,
        kw_only=True,
    )
    kind.__doc__ = Options.__doc__
    options = parse(kind, rest, f"nucleate {command} {name}", default=kind(spec=spec))

    from nucleate.studies.cells import run_specs

    (run,) = run_specs(
        [replace(options.spec, recipe=name)],
        root=options.out,
        data_root=options.data_root,
        threads=options.jobs,
    )
    module, _, function = tell.partition(":")
    print(getattr(import_module(module), function)(run))
    print(f"run: {run.path}")
    if options.report:
        from nucleate.report import page

        print(f"report: {page([run], run.path / 'report.html')}")
    return 0
