"""nucleate runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nucleate.cli.arguments import RUNS, parse, positionals

WORDS = ("list", "compare", "table", "remove")


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """List, compare, tabulate or remove the runs at or below folders.

    list: name, state, records and size. compare: the fields in which the runs differ, beside the last values of their
    metrics. table: all their records in one file. remove: delete run folders (shows them only, without --yes).
    """

    where: tuple[str, ...] = ()
    """Only runs whose spec has these values: train.lr=0.1 model.name=mlp; done=true or done=false."""
    metrics: tuple[str, ...] = ()
    """compare: only these metrics, by name."""
    out: Path | None = None
    """compare, table: write to this file, .csv, .json or .parquet."""
    yes: bool = False
    """remove: really delete."""


def runs(args: Sequence[str]) -> int:
    """`runs list`, `compare`, `table`, `remove`: what is in run folders."""
    words, rest = positionals(args)
    options = parse(
        RunsOptions, rest, "nucleate runs list | compare | table | remove [FOLDER ...]", default=RunsOptions()
    )
    if not words or words[0] not in WORDS:
        raise ValueError(f"write: nucleate runs {' | '.join(WORDS)} [FOLDER ...]")

    from nucleate.runs import find_runs
    from nucleate.runs.tables import comparison, matching, tidy, write_table

    found = {run.path.resolve(): run for folder in words[1:] or [str(RUNS)] for run in find_runs(folder)}
    chosen = matching(list(found.values()), options.where)
    if not chosen:
        raise ValueError(f"none of {len(found)} runs has {' and '.join(options.where)}")
    if words[0] == "remove":
        return _remove(chosen, sure=options.yes)
    if words[0] == "table":
        if options.out is None:
            raise ValueError("name the file of the table: --out records.csv (or .json, .parquet)")
        write_table(tidy(chosen), options.out)
        print(options.out)
        return 0
    rows = [_line(run) for run in chosen] if words[0] == "list" else comparison(chosen, options.metrics)
    if options.out is not None:
        write_table(rows, options.out)
        print(options.out)
        return 0
    print(_text(rows))
    return 0


def _line(run: Any) -> dict[str, Any]:
    size = sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())
    return {
        "run": run.path.name,
        "state": "done" if run.done else "not finished",
        "records": len(run.records),
        "MB": round(size / 1e6, 1),
        "folder": str(run.path.parent),
    }


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table for the terminal."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _remove(chosen: Sequence[Any], *, sure: bool) -> int:
    from nucleate.runs.store import held

    for run in chosen:
        if sure:
            with held(run.path):
                shutil.rmtree(run.path)
        print(f"{'removed' if sure else 'would remove'} {run.path}")
    if not sure:
        print("nothing was removed: add --yes")
    return 0
