"""nucleate prune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from nucleate.cli.arguments import RUNS, parse
from nucleate.spec import PruneRunSpec


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Prune a trained network of yours; out come its weights, masks, record, card and a report."""

    spec: Annotated[PruneRunSpec, tyro.conf.arg(name="")] = field(default_factory=PruneRunSpec)
    out: Path = RUNS
    """Folder that the run folder is written to."""
    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""
    dry_run: bool = False
    """Only say what would be pruned and what not, and why."""
    report: bool = True
    """Write the HTML report at the end."""


def prune(args: Sequence[str]) -> int:
    """Prune a trained network to a density, or as far as its accuracy bears."""
    options = parse(PruneOptions, _short(args), "nucleate prune", default=PruneOptions())
    paths = {n: str(Path(p).expanduser()) for n in ("weights", "early") if (p := getattr(options.spec, n))}
    spec = replace(options.spec, **paths)

    from nucleate.studies.cells import run_specs
    from nucleate.studies.prune import check, covered

    if options.dry_run:
        print(covered(spec, options.data_root))
        return 0
    check(spec)
    print(covered(spec, options.data_root))
    (run,) = run_specs([spec], root=options.out, data_root=options.data_root, label=f"prune, {spec.prune.method}")
    print((run.path / "card.md").read_text(encoding="utf-8"))
    print(f"run: {run.path}")
    print(f"weights: {run.path / 'tensors' / 'weights.safetensors'}")
    if options.report:
        from nucleate.report import page

        print(f"report: {page([run], run.path / 'report.html')}")
    return 0


def _short(args: Sequence[str]) -> list[str]:
    """`--model`, `--data`, `--method`, `--scope`, `--shape`, `--layers` and `--after` for the fields that they name."""
    names = {"--model": "--model.name", "--data": "--data.name"} | {
        f"--{name}": f"--prune.{name}" for name in ("method", "scope", "shape", "layers", "after")
    }
    return [names.get(key, key) + sign + value for key, sign, value in (arg.partition("=") for arg in args)]
