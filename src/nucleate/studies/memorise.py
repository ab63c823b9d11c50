"""Memorise: can a network fit wrong labels, how long does it take, what does it cost (Zhang et al. 2017)?

The descent study along label noise, at one width: its cells, its records, its resume.
"""

from __future__ import annotations

from collections import defaultdict

from nucleate.runs import Run
from nucleate.studies.descent import run as run
from nucleate.studies.descent import size as size
from nucleate.studies.descent.tables import along_density, cell, heading, lost, of

SHOWN = (
    ("train", "error", "train"),
    ("test", "error", "test"),
    ("train", "memorised", "memorised"),
    ("train", "fit_epoch", "epochs"),
    ("", "norm", "norm"),
    ("", "distance", "distance"),
    ("train", "effective_depth", "depth"),
    ("train", "nc1", "NC1"),
)
"""Split, metric and heading of the columns: means over seeds at the last epoch."""


def along_noise(run: Run) -> str:
    """One row for each share of wrong labels; `epochs` is the first measured epoch at which all labels are fitted."""
    last: dict[tuple[int, float, str, str], dict[int, float]] = defaultdict(dict)
    for row in run.records:
        whole = row.get("density", 1.0) == 1
        if whole and "noise" in row and "width" in row and row["seed"] is not None and row["antidote"] == "none":
            last[row["width"], row["noise"], row["split"], row["metric"]][row["seed"]] = row["value"]
    seeds = len({row["seed"] for row in run.records if "width" in row} - {None})
    lines = [f"{run.spec['recipe']}{of(seeds)}"]
    lines.append(f"{'width':>8s}{'wrong':>8s}" + "".join(heading(metric, name) for _, metric, name in SHOWN))
    for width, noise in dict.fromkeys((w, q) for w, q, _, _ in last):
        found = ((metric, last.get((width, noise, split, metric), {}).values()) for split, metric, _ in SHOWN)
        cells = [cell(*f) for f in found]
        lines.append(f"{width:8d}{noise:8.2f}" + "".join(cells))
    return "\n".join([*lines, *along_density(run), *lost(run)])
