"""Where models begin to fit their points: the interpolation threshold, sizes near it, effective model complexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nucleate.runs import Record

EMC_ERROR = 0.1
"""Mean training error up to which a procedure counts as fitting (Nakkiran et al. 2020)."""


@dataclass(frozen=True)
class Bracket:
    """The last size that does not fit and the first that does; one is missing where all or none fit."""

    below: int | None
    above: int | None


def bracket(errors: Mapping[int, float], fit_error: float) -> Bracket:
    """Bracket of the interpolation threshold from mean training errors by size.

    Fitting must last: the threshold lies above the widest model whose error is above `fit_error`.

    >>> bracket({2: 0.5, 8: 0.2, 32: 0.01, 64: 0.0}, 0.05)
    Bracket(below=8, above=32)
    """
    failing = [size for size, error in errors.items() if not error <= fit_error]
    below = max(failing, default=None)
    above = min((size for size in errors if below is None or size > below), default=None)
    return Bracket(below, above)


def between(found: Bracket, count: int) -> list[int]:
    """At most `count` new sizes inside a bracket, in equal ratios.

    >>> between(Bracket(8, 32), 1), between(Bracket(8, 9), 3)
    ([16], [])
    """
    if found.below is None or found.above is None:
        return []
    ratio = found.above / found.below
    sizes = {round(found.below * ratio ** (i / (count + 1))) for i in range(1, count + 1)}
    return sorted(sizes - {found.below, found.above})


def effective_complexity(errors: Mapping[int, float]) -> float:
    """Largest sample that a model fits, by mean training error at each sample size; nan where it fits none.

    EMC = max n with error <= 0.1, between two sample sizes by linear interpolation (Nakkiran et al. 2020). It is a
    lower bound where the largest sample is still fitted.

    >>> effective_complexity({100: 0.0, 200: 0.05, 400: 0.15})
    300.0
    """
    sizes = sorted(errors)
    fitted = [n for n in sizes if errors[n] <= EMC_ERROR]
    if not fitted:
        return math.nan
    last = max(fitted)
    after = [n for n in sizes if n > last]
    if not after:
        return float(last)
    share = (EMC_ERROR - errors[last]) / (errors[after[0]] - errors[last])
    return last + share * (after[0] - last)


def mean_errors(rows: Iterable[Record], metric: str, key: str, **where: object) -> dict[Any, float]:
    """Mean over seeds of a training measure at the last epoch, by width or samples, where the other fields agree."""
    found = by_seed(rows, metric, key, split="train", **where)
    return {size: sum(values.values()) / len(values) for size, values in found.items()}


def by_seed(
    rows: Iterable[Record], metric: str, key: str, *, split: str, **where: object
) -> dict[Any, dict[int, float]]:
    """A measure at the last epoch, by width, samples or density and then by seed, where the other fields agree.

    Seeds whose network diverged, with a measure of nan, are left out.
    """
    found: dict[Any, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == metric and row["split"] == split and all(row.get(k) == v for k, v in where.items()):
            found.setdefault(row[key], {})[row["seed"]] = row["value"]
    known = {size: {s: v for s, v in own.items() if not math.isnan(v)} for size, own in sorted(found.items())}
    return {size: own for size, own in known.items() if own}
