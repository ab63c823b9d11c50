"""nucleate compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from nucleate.cli.arguments import EXECUTOR, RUNS, On, parse, positional
from nucleate.recipes.compare import LANGUAGE_METHODS, METHODS, RECIPES, recipe
from nucleate.spec import CompareSpec


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Prune the same trained networks by several methods to several densities, and show accuracy against size."""

    spec: Annotated[CompareSpec, tyro.conf.arg(name="")] = field(default_factory=CompareSpec)
    methods: tuple[str, ...] = ()
    """Scores by name, or `package.module:function`; the recipe's usual ones if empty. "dense" prunes nothing."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the dense networks."""
    jobs: int = len(os.sched_getaffinity(0))
    """Processes among which the runs are shared."""
    on: On = "here"
    """Where runs run: here, or as Ray tasks (extra `ray`; RAY_ADDRESS names a cluster)."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    report: bool = True
    """Write the HTML report at the end."""


def compare(args: Sequence[str]) -> int:
    """Compare pruning methods: accuracy against density, bytes and multiply-adds, over seeds."""
    name, rest = positional(args, "digits-mlp")
    if "--help" in rest or "-h" in rest:
        print("recipes:\n" + "\n".join(f"  {k:22s} {v.__doc__}" for k, v in RECIPES.items()) + "\n")
    options = parse(CompareOptions, rest, f"nucleate compare {name}", default=CompareOptions(spec=recipe(name)))
    spec = replace(options.spec, recipe=name)
    usual = LANGUAGE_METHODS if spec.model.name == "transformer" else METHODS
    methods = options.methods or usual

    from nucleate.studies.cells import run_specs
    from nucleate.studies.compare import check, check_method, parent
    from nucleate.studies.tables import by_density

    check(spec)
    for method in methods:
        check_method(method)
    seeds = [replace(spec, seed=seed) for seed in options.seeds]
    where = {
        "root": options.out,
        "data_root": options.data_root,
        "jobs": options.jobs,
        "executor": EXECUTOR[options.on],
    }
    run_specs([parent(s) for s in seeds], label=f"{name}, dense", **where)
    cells = [replace(s, prune=replace(s.prune, method=method)) for method in methods for s in seeds]
    runs = run_specs(cells, label=f"{name}, pruned", **where)
    print(by_density(runs))
    if options.report:
        from nucleate.report import page

        print(f"report: {page(runs, options.out / f'compare-{name}.html')}")
    return 0
