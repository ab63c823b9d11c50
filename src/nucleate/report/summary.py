"""The table "zero error -> end" of a group of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nucleate.report.catalog import LABELS, SUMMARY
from nucleate.report.gather import View, interval

Cell = tuple[str, str]
"""A value and its interval, which is empty for a single seed."""


@dataclass(frozen=True)
class Row:
    """One measure as text."""

    label: str
    metric: str
    split: str
    zero: Cell
    end: Cell
    change: Cell


def summary(members: Sequence[View]) -> list[Row]:
    """A row for each measure that any seed has at its end: mean over seeds, and the 95 % interval for several.

    The change is paired: the geometric mean over seeds of end / zero error, or points of accuracy.
    """
    rows = []
    for layer, split, metric in SUMMARY:
        have = [v for v in members if (metric, layer, split) in v.series]
        ends = [v.series[metric, layer, split].at(v.end) for v in have]
        if not any(map(math.isfinite, ends)):
            continue
        zeros = [v.series[metric, layer, split].at(v.zero) for v in have]
        rows.append(Row(LABELS[metric], metric, split, text(zeros), text(ends), _change(metric, zeros, ends)))
    return rows


def text(values: Sequence[float], *, sign: str = "", unit: str = "", log: bool = False) -> Cell:
    """Mean and interval.

    >>> text([1.0]), text([1.0, 2.0, 3.0]), text([math.nan])
    (('1', ''), ('2', '-0.484 to 4.48'), ('–', ''))
    """
    low, mean, high = (short(v, sign) for v in interval(values, log=log))
    if mean == "–":
        return mean, ""
    return mean + unit, "" if low in ("–", high) else f"{low} to {high}"


def short(value: float, sign: str = "") -> str:
    """Three significant digits, thousands written out.

    >>> short(4781.0), short(0.012345), short(2.0, "+"), short(math.nan)
    ('4,781', '0.0123', '+2', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:{sign},.0f}" if 1000 <= abs(value) < 1e6 else f"{value:{sign}.3g}"


def _change(metric: str, zeros: Sequence[float], ends: Sequence[float]) -> Cell:
    finite = [(z, e) for z, e in zip(zeros, ends, strict=True) if math.isfinite(z) and math.isfinite(e)]
    if not finite:
        return "–", ""
    if all(z == e for z, e in finite):
        return "same", ""
    if metric == "error" or metric.endswith("accuracy"):
        return text([100 * (e - z) for z, e in finite], sign="+", unit=" points")
    if all(e == 0 for _, e in finite):
        return "to 0", ""
    if any(z <= 0 or e <= 0 for z, e in finite):
        return "–", ""
    falls = sum(math.log(e / z) for z, e in finite) < 0
    value, between = text([z / e if falls else e / z for z, e in finite], log=True)
    return f"{'↓' if falls else '↑'} {value}x", between
