"""The command line. torch is imported inside the commands, so that help comes at once."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from nucleate.recipes import RECIPES, recipe
from nucleate.spec import CollapseSpec

RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class CollapseOptions:
    """Train into the terminal phase, measure every layer on the way, write the run folder and its report."""

    spec: Annotated[CollapseSpec, tyro.conf.arg(name="")] = field(default_factory=CollapseSpec)
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


def collapse(args: Sequence[str]) -> int:
    """Train a recipe past zero error and watch its classes collapse."""
    name, rest = _positional(args, "digits-mlp")
    if "--help" in rest or "-h" in rest:
        print("recipes:\n" + "\n".join(f"  {k:22s} {v.__doc__}" for k, v in RECIPES.items()) + "\n")
    options = _parse(CollapseOptions, rest, f"nucleate collapse {name}", default=CollapseOptions(spec=recipe(name)))
    spec = replace(options.spec, recipe=name)
    seeds = options.seeds or (spec.seed,)

    from nucleate.studies.collapse import run_seeds
    from nucleate.studies.tables import zero_to_end

    runs = run_seeds(
        [replace(spec, seed=s) for s in seeds], root=options.out, data_root=options.data_root, jobs=options.jobs
    )
    for run in runs:
        print(zero_to_end(run))
        print(f"run: {run.path}")
    if options.report:
        from nucleate.report import page

        target = runs[0].path / "report.html" if len(runs) == 1 else options.out / f"{name}.html"
        print(f"report: {page(runs, target)}")
    return 0


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """One page, or figures, for a run or all runs below a folder."""

    out: Path | None = None
    """The HTML file (or the folder of figures); beside the run if none."""
    figures: bool = False
    """Write every figure as PNG and PDF instead of the page."""
    projection: str = "pca"
    """pca, tsne or umap (needs the extra `umap`)."""


def report(args: Sequence[str]) -> int:
    """Make the page or the figures of runs, on demand."""
    paths, rest = _positionals(args)
    options = _parse(ReportOptions, rest, "nucleate report RUN [RUN ...]", default=ReportOptions())
    if not paths:
        raise ValueError("name a run folder, or a folder of runs: nucleate report RUN [--figures]")

    from nucleate.report import figures, page
    from nucleate.runs import find_runs

    runs = [run for path in paths for run in find_runs(path)]
    if options.figures:
        for made in figures(runs, options.out or Path(paths[0]) / "figures"):
            print(made)
        return 0
    print(page(runs, options.out or Path(paths[0]) / "report.html", projection=options.projection))
    return 0


@dataclass(frozen=True, kw_only=True)
class ClaimsOptions:
    """Try claims of the subject; all of them if none is named."""

    quick: bool = False
    """Digits and synthetic data, minutes; else the full tier on MNIST."""
    list: bool = False
    """Print the claims and their criteria, run nothing."""
    json: Path | None = None
    """Write one row for each claim to this file."""
    figure: Path | None = None
    """Draw the claims' clauses to this file (.svg, .png or .pdf)."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    jobs: int = len(os.sched_getaffinity(0))
    """Processes among which the runs are shared."""


def claims(args: Sequence[str]) -> int:
    """Try the subject's claims and say what happened."""
    ids, rest = _positionals(args)
    options = _parse(ClaimsOptions, rest, "nucleate claims [ID ...]", default=ClaimsOptions())

    from nucleate.claims import listing, table, try_claims
    from nucleate.runs.store import write_atomic

    if options.list:
        print(listing(ids))
        return 0
    if options.figure is not None and len(ids) != 1:
        raise ValueError("--figure draws one claim: name it, as in nucleate claims nc1 --quick --figure nc1.svg")
    judgements, runs = try_claims(
        ids, tier="quick" if options.quick else "full", root=options.out, data_root=options.data_root, jobs=options.jobs
    )
    print(table(judgements))
    rows = [judgement.row() for judgement in judgements]
    if options.json is not None:
        write_atomic(options.json, json.dumps(rows, indent=1).encode())
    from nucleate.report import claim_figure, page

    if options.figure is not None:
        claim_figure(rows[0], options.figure)
    print(f"report: {page(runs, options.out / 'claims.html', verdicts=rows)}")
    return 0


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Say what data is where, or download it."""

    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""


def data(args: Sequence[str]) -> int:
    """`data list`: what is where; `data fetch NAME`: download it from its official mirrors."""
    words, rest = _positionals(args)
    options = _parse(DataOptions, rest, "nucleate data list | fetch NAME", default=DataOptions())

    from nucleate.data import fetch, listing

    if words == ["list"]:
        for row in listing(options.data_root):
            points = f"{row.train:,} + {row.test:,} points" if row.train is not None and row.test is not None else ""
            print(f"{row.name:14s}{row.kind or 'missing':11s}{points:26s}{row.path or row.problem}")
    elif len(words) == 2 and words[0] == "fetch":
        from tqdm import tqdm

        bars: dict[str, tqdm[Any]] = {}

        def tick(name: str, count: int, total: int) -> None:
            bar = bars.setdefault(name, tqdm(desc=name, total=total, unit="B", unit_scale=True))
            bar.update(count)

        try:
            folder = fetch(words[1], options.data_root, progress=tick)
        finally:
            for bar in bars.values():
                bar.close()
        print(folder)
    else:
        raise ValueError("write: nucleate data list, or: nucleate data fetch NAME")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "collapse": collapse,
    "claims": claims,
    "report": report,
    "data": data,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake gives one line on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("nucleate"))
        return 0
    try:
        if args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise ValueError(f"no command is named {args[0]!r}; {hint}")
        return COMMANDS[args[0]](args[1:])
    except KeyboardInterrupt:
        print("nucleate: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print("nucleate: " + " ".join(str(error).split()), file=sys.stderr)
        return 2


def _help() -> str:
    lines = [
        "Measure how a network's classes collapse into a simplex, find the sparse network inside it,",
        "and ship that one.",
        "",
        "usage: nucleate COMMAND [ARGUMENTS]   (nucleate COMMAND --help for its options)",
        "",
    ]
    lines += [f"  {name:10s} {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


def _parse(kind: type[Any], args: Sequence[str], prog: str, *, default: Any) -> Any:
    return tyro.cli(kind, args=args, default=default, prog=prog)


def _positional(args: Sequence[str], default: str) -> tuple[str, list[str]]:
    """Split off the first argument, if it is not an option."""
    if args and not args[0].startswith("-"):
        return args[0], list(args[1:])
    return default, list(args)


def _positionals(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off all arguments before the first option."""
    count = next((i for i, a in enumerate(args) if a.startswith("-")), len(args))
    return list(args[:count]), list(args[count:])


if __name__ == "__main__":
    sys.exit(main())
