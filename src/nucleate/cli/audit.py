"""nucleate audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nucleate.cli.arguments import parse, positionals


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Rank the models of runs by every measure and by their generalisation gap; name run folders, or folders of runs.

    For example: nucleate audit runs --report audit.html.
    """

    report: Path | None = None
    """Also write the audit, with the runs' charts, to this HTML file."""


def audit(args: Sequence[str]) -> int:
    """Ask of every measure in a sweep's runs whether it ranks the models as their generalisation gap does."""
    paths, rest = positionals(args)
    options = parse(AuditOptions, rest, "nucleate audit RUN [RUN ...]", default=AuditOptions())
    if not paths:
        raise ValueError("name run folders, or a folder of runs: nucleate audit RUN [RUN ...]")
    if options.report is not None and not options.report.absolute().parent.is_dir():
        raise ValueError(f"cannot write {options.report}: there is no folder {options.report.parent}")

    from nucleate.runs import find_runs
    from nucleate.studies.audit import READING, facts, models, rows, told

    runs = [run for path in paths for run in find_runs(path)]
    found = models(runs)
    print(told(found))
    if options.report is not None:
        from nucleate.report import page

        shown = {"facts": facts(found), "rows": rows(found), "reading": READING}
        print(f"report: {page(runs, options.report, audit=shown)}")
    return 0
