"""Runs as text for the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from nucleate.probes.records import Records
from nucleate.runs import Run

SHOWN = {
    ("", "train"): ("error", "loss", "vertex_distance_mean", "vertex_distance_max", "logit_norm", "logit_ratio"),
    ("penultimate", "train"): (
        "nc1",
        "nc1_quotient",
        "nc1_cdnv",
        "nc2_equinorm",
        "nc2_equiangle",
        "nc2_etf",
        "nc3",
        "nc3_cosine",
        "nc4",
        "boundary_spread",
    ),
    ("", "test"): ("accuracy", "ece", "fgsm_accuracy", "pgd_accuracy", "min_perturbation", "corruption_accuracy"),
    ("penultimate", "test"): ("nc4", "chi"),
}
"""The measures of the closing table, by (layer, split)."""


def zero_to_end(run: Run) -> str:
    """The table "zero error -> end" of a run.

    Where the training error never reached zero, the first column says so and stays empty.
    """
    rows = {(r["layer"], r["split"], r["metric"]): r for r in run.table()}
    zero = run.env.get("zero_error_epoch", -1)
    last = max((r["epoch"] for r in run.records), default=0)
    begins = f"zero error at epoch {zero}" if zero >= 0 else "zero error not reached"
    lines = [
        f"{run.spec['recipe']}, seed {run.spec['seed']}: {begins}, end at epoch {last}",
        f"{'':8s}{'':14s}{'measure':22s}{'zero error':>12s}{'end':>12s}{'ratio':>10s}",
    ]
    for (layer, split), metrics in SHOWN.items():
        for metric in metrics:
            row = rows.get((layer, split, metric))
            if row is not None:
                first, end = row["zero"], row["end"]
                ratio = f"{end / first:10.3g}" if first and math.isfinite(end / first) else f"{'':10s}"
                lines.append(f"{split:8s}{layer or 'network':14s}{metric:22s}{_number(first)}{_number(end)}{ratio}")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:12.4g}" if math.isfinite(value) else f"{'-':>12s}"


def by_density(runs: Sequence[Run]) -> str:
    """Held-out accuracy by method and density: mean over seeds, with the standard deviation of several."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for row in run.select(metric="accuracy", split="test", layer=""):
            found.setdefault(row["method"], {}).setdefault(row["density"], []).append(row["value"])
    densities = sorted({d for by in found.values() for d in by}, reverse=True)
    lines = [f"{'held-out accuracy, %':22s}" + "".join(f"{d:>13.3g}" for d in densities)]
    for method, by in found.items():
        cells = []
        for d in densities:
            values = [100 * v for v in by.get(d, [])]
            spread = f"±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "-")
        lines.append(f"{method:22s}" + "".join(f"{c:>13s}" for c in cells))
    seeds = max((len(v) for by in found.values() for v in by.values()), default=0)
    lines.append(f"kept share of the prunable weights above; {seeds} seeds, ± one standard deviation")
    return "\n".join(lines)


ALONG = (("", "test", "accuracy"), *(("penultimate", "train", m) for m in ("nc1", "nc2_etf", "nc3", "nc4", "chi")))
"""What is shown of each checkpoint of a sweep: layer, split, metric."""


def layer_by_layer(run: Run) -> str:
    """The last layers of every checkpoint, then all layers of the last one, of a probe's run."""
    rows = run.records
    epochs = sorted({r["epoch"] for r in rows})
    parts = []
    if len(epochs) > 1:
        lines = [f"{'checkpoint':>12s}" + "".join(f"{metric:>12s}" for _, _, metric in ALONG)]
        values = {(r["epoch"], r["layer"], r["split"], r["metric"]): r["value"] for r in rows}
        for epoch in epochs:
            cells = (_number(values.get((epoch, *key), math.nan)) for key in ALONG)
            lines.append(f"{epoch:12d}" + "".join(cells))
        parts.append("\n".join(lines))
    last = Records(r for r in rows if r["epoch"] == epochs[-1])
    parts += [last.table(split) for split in dict.fromkeys(r["split"] for r in last)]
    return "\n\n".join(parts)
