"""nucleate claims."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nucleate.cli.arguments import RUNS, parse, positionals


@dataclass(frozen=True, kw_only=True)
class ClaimsOptions:
    """Try claims of the subject, each with its criterion written down before the run; all of them if none is named.

    For example: nucleate claims --list; nucleate claims nc1 nc2 --quick.
    """

    quick: bool = False
    """Digits and synthetic data, minutes for all; without it the full tier, which needs MNIST and hours."""
    list: bool = False
    """Print the claims and their criteria, run nothing."""
    json: Path | None = None
    """Write one row for each claim to this file."""
    figure: Path | None = None
    """Draw the one claim that is named to this file (.svg, .png or .pdf)."""
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    jobs: int = len(os.sched_getaffinity(0))
    """Processes among which the runs are shared."""


def claims(args: Sequence[str]) -> int:
    """Try the subject's claims and say what happened."""
    ids, rest = positionals(args)
    options = parse(ClaimsOptions, rest, "nucleate claims [ID ...]", default=ClaimsOptions())

    from nucleate.claims import listing, table, try_claims
    from nucleate.report.style import check_formats
    from nucleate.runs.store import write_atomic

    if options.list:
        print(listing(ids))
        return 0
    if options.figure is not None and len(ids) != 1:
        raise ValueError("--figure draws one claim: name it, as in nucleate claims nc1 --quick --figure nc1.svg")
    # What would fail at the end is refused before the minutes of work.
    if options.figure is not None:
        check_formats([options.figure.suffix.lstrip(".").lower()])
    for file in filter(None, (options.json, options.figure)):
        if not file.absolute().parent.is_dir():
            raise ValueError(f"cannot write {file}: there is no folder {file.parent}")
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
