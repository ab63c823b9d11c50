"""nucleate audit."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.arguments import positionals


def audit(args: Sequence[str]) -> int:
    """Ask of every measure in a sweep's runs whether it ranks the models as their generalisation gap does."""
    paths, rest = positionals(args)
    if rest in (["--help"], ["-h"]):
        print("usage: nucleate audit RUN [RUN ...]   (run folders, or folders of runs)")
        return 0
    if rest or not paths:
        raise ValueError("name run folders, or a folder of runs: nucleate audit RUN [RUN ...]")

    from nucleate.runs import find_runs
    from nucleate.studies.audit import models, told

    print(told(models([run for path in paths for run in find_runs(path)])))
    return 0
