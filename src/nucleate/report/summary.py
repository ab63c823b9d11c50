"""The table "zero error -> end" of a group of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nucleate.report.catalog import LABELS, SUMMARY
from nucleate.report.gather import View, interval


@dataclass(frozen=True)
class Row:
    """One measure as text."""

    label: str
    metric: str
    split: str
    zero: str
    end: str
    change: str


def summary(members: Sequence[View]) -> list[Row]:
    """A row for each measure that any seed has at its end: mean over seeds, with the 95 % interval if there are several.

    The change is the geometric mean over seeds of end / zero error, paired.
    """
    rows = []
    for layer, split, metric in SUMMARY:
        have = [v for v in members if (metric, layer, split) in v.series]
        ends = [v.series[metric, layer, split].at(v.end) for v in have]
        if not any(map(math.isfinite, ends)):
            continue
        zeros = [v.series[metric, layer, split].at(v.zero) for v in have]
        ratios = [e / z if z else math.nan for z, e in zip(zeros, ends, strict=True)]
        rows.append(Row(LABELS[metric], metric, split, text(zeros), text(ends), _change(zeros, ends, ratios)))
    return rows


def text(values: Sequence[float]) -> str:
    """Mean, and its interval for several values.

    >>> text([1.0]), text([1.0, 2.0, 3.0]), text([math.nan])
    ('1', '2 [-0.484, 4.48]', '–')
    """
    low, mean, high = interval(values)
    if not math.isfinite(mean):
        return "–"
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]" if math.isfinite(low) and high > low else f"{mean:.3g}"


def _change(zeros: Sequence[float], ends: Sequence[float], ratios: Sequence[float]) -> str:
    finite = [(z, e) for z, e in zip(zeros, ends, strict=True) if math.isfinite(z) and math.isfinite(e)]
    if not finite:
        return "–"
    if all(z == e for z, e in finite):
        return "same"
    if all(e == 0 for _, e in finite):
        return "to 0"
    if not all(math.isfinite(r) and r > 0 for r in ratios):
        return "–"
    low, mean, high = interval(ratios, log=True)
    arrow = "↓" if mean < 1 else "↑"
    if mean < 1:
        low, mean, high = 1 / high, 1 / mean, 1 / low
    between = f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) and f"{low:.3g}" != f"{high:.3g}" else ""
    return f"{arrow} {mean:.3g}x{between}"
