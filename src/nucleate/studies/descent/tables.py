"""A descent run as text for the terminal."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from nucleate.runs import Run

SHOWN = (
    ("train", "error", "train"),
    ("test", "error", "test"),
    ("test", "loss", "loss"),
    ("train", "memorised", "memorised"),
    ("", "norm", "norm"),
    ("test", "churn", "churn"),
    ("test", "bias_squared", "bias^2"),
    ("test", "variance", "variance"),
)
"""Split, metric and heading of the columns: means over seeds at the last epoch."""


def along_width(run: Run) -> str:
    """The table without an antidote, and for all: interpolation threshold, first minimum, peak and end."""
    values: dict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    marks: dict[tuple[Any, Any], float] = {}
    keys: dict[tuple[Any, ...], None] = {}
    for row in run.records:
        if row["metric"] == "threshold":
            marks[row["samples"], row["noise"]] = row["value"]
        if "samples" in row and "width" in row and row["layer"] == "":
            key = (row["antidote"], row["noise"], row["samples"], row["width"])
            keys.setdefault(key)
            values[(*key, row["split"], row["metric"])][row["seed"]] = row["value"]
    mean = {k: sum(v.values()) / len(v) for k, v in values.items()}
    lines = []
    for antidote, noise in dict.fromkeys((a, q) for a, q, _, _ in keys):
        own = sorted(k[2:] for k in keys if k[:2] == (antidote, noise))
        lines.append(f"\n{run.spec['recipe']}, antidote {antidote}, label noise {noise:g}")
        if antidote == "none":
            lines.append(f"{'samples':>8s}{'width':>8s}" + "".join(f"{name:>12s}" for _, _, name in SHOWN))
        for samples, width in own if antidote == "none" else ():
            cells = (mean.get((antidote, noise, samples, width, split, m), math.nan) for split, m, _ in SHOWN)
            lines.append(f"{samples:8d}{width:8d}" + "".join(_number(v) for v in cells))
        for samples in dict.fromkeys(n for n, _ in own):
            curve = {w: mean[antidote, noise, n, w, "test", "error"] for n, w in own if n == samples}
            if len(curve) > 2:
                lines.append(_shape(curve, samples, marks.get((samples, noise)) if antidote == "none" else None))
    return "\n".join(lines).lstrip("\n")


def shape(curve: dict[int, float]) -> tuple[int, int, int]:
    """Sizes of the first minimum, of the peak after it, and the last one.

    The peak is the largest test error after which a lower one follows and before which a lower one stands: the pair
    that rises most from an earlier minimum.

    >>> shape({1: 0.5, 2: 0.2, 4: 0.6, 8: 0.1})
    (2, 4, 8)
    """
    sizes = sorted(curve)
    first, peak, rise = sizes[0], sizes[0], 0.0
    lowest = sizes[0]
    for size in sizes:
        if curve[size] < curve[lowest]:
            lowest = size
        if curve[size] - curve[lowest] > rise:
            first, peak, rise = lowest, size, curve[size] - curve[lowest]
    return first, peak, sizes[-1]


def _shape(curve: dict[int, float], samples: int, threshold: float | None) -> str:
    first, peak, last = shape(curve)
    told = f"n = {samples}: " + (f"threshold at {threshold:g}; " if threshold is not None else "")
    if peak == first:
        return told + f"no peak; {curve[last]:.3g} at {last}"
    told += f"first minimum {curve[first]:.3g} at {first}, peak {curve[peak]:.3g} at {peak}, "
    return told + f"end {curve[last]:.3g} at {last}"


def _number(value: float) -> str:
    return f"{value:12.4g}" if math.isfinite(value) else f"{'-':>12s}"
