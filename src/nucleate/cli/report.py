"""nucleate report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nucleate.cli.arguments import parse, positionals


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """One page, or figures, for a run or all runs below a folder."""

    out: Path | None = None
    """The HTML file (or the folder of figures); beside the run if none."""
    figures: bool = False
    """Write every figure as PNG and PDF instead of the page."""
    only: tuple[str, ...] = ()
    """With --figures: the names of those wanted (nc, layers, chi, ...); all if none."""
    projection: Literal["pca", "tsne", "umap"] = "pca"
    """How layers are drawn in two dimensions; umap needs the extra `umap`."""


def report(args: Sequence[str]) -> int:
    """Make the page or the figures of runs, on demand."""
    paths, rest = positionals(args)
    options = parse(ReportOptions, rest, "nucleate report RUN [RUN ...]", default=ReportOptions())
    if not paths:
        raise ValueError("name a run folder, or a folder of runs: nucleate report RUN [--figures]")

    from nucleate.report import figures, page
    from nucleate.runs import find_runs

    runs = [run for path in paths for run in find_runs(path)]
    if options.only and not options.figures:
        raise ValueError("--only chooses among figures: give --figures too")
    if options.figures:
        folder = options.out or Path(paths[0]) / "figures"
        for made in figures(runs, folder, only=options.only, projection=options.projection):
            print(made)
        return 0
    print(page(runs, options.out or Path(paths[0]) / "report.html", projection=options.projection))
    return 0
