"""nucleate probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from nucleate.cli.arguments import RUNS, parse
from nucleate.spec import ProbeSpec


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Measure every layer of a trained network, or of its checkpoints, write the run folder and its report."""

    spec: Annotated[ProbeSpec, tyro.conf.arg(name="")] = field(default_factory=ProbeSpec)
    out: Path = RUNS
    """Folder that the run folders are written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    report: bool = True
    """Write the HTML report at the end."""


def probe(args: Sequence[str]) -> int:
    """Measure every layer of a network of yours, at one checkpoint or along many."""
    options = parse(ProbeOptions, args, "nucleate probe", default=ProbeOptions())
    spec = options.spec
    if spec.recipe == ProbeSpec().recipe and ":" in spec.model:
        spec = replace(spec, recipe=spec.model.rpartition(":")[2])

    from nucleate.studies.probe import run
    from nucleate.studies.tables import layer_by_layer

    found = run(spec, root=options.out, data_root=options.data_root, progress=True)
    print(layer_by_layer(found))
    print(f"run: {found.path}")
    if options.report:
        from nucleate.report import page

        print(f"report: {page([found], found.path / 'report.html')}")
    return 0
