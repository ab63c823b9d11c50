"""The verdict rule: clauses with numbers, paired 95 % intervals, and what they allow to say.

`holds`: the whole interval of every clause satisfies it; `fails`: the interval of one excludes it; else `inconclusive`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Word = Literal["holds", "fails", "inconclusive"]
Direction = Literal["<=", ">=", "<", ">"]
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
LEVEL = 0.95
DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One number that a claim stands on, with its interval and its bound."""

    name: str
    effect: float
    low: float
    high: float
    direction: Direction
    bound: float
    seeds: int
    unit: str = ""
    reason: str = ""
    """Why the effect is not defined, where it is not."""
    judged: bool = True
    """Whether the verdict hangs on it; others are printed beside it."""

    @property
    def verdict(self) -> Word:
        """What the interval says about this clause alone."""
        if not all(map(math.isfinite, (self.effect, self.low, self.high))):
            return "inconclusive"
        satisfies = COMPARE[self.direction]
        ends = satisfies(self.low, self.bound), satisfies(self.high, self.bound)
        return "holds" if all(ends) else "inconclusive" if any(ends) else "fails"

    def row(self) -> dict[str, Any]:
        """Plain dict, the verdict included."""
        return {**asdict(self), "verdict": self.verdict}


def verdict(clauses: Sequence[Clause]) -> Word:
    """Verdict over all clauses that are judged.

    >>> at_most = Clause(name="error", effect=0.0, low=0.0, high=0.0, direction="<=", bound=0.0, seeds=10)
    >>> verdict([at_most])
    'holds'
    """
    words = [clause.verdict for clause in clauses if clause.judged]
    if "fails" in words:
        return "fails"
    return "holds" if words and all(w == "holds" for w in words) else "inconclusive"


def mean_clause(name: str, values: ArrayLike, direction: Direction, bound: float, *, unit: str = "") -> Clause:
    """Mean over seeds with Student's t interval. One value for each seed; seeds whose values all agree give a point.

    >>> clause = mean_clause("gain", [1.0, 2.0, 3.0], ">=", 0.0)
    >>> round(clause.low, 3), round(clause.high, 3), clause.verdict
    (-0.484, 4.484, 'inconclusive')
    """
    x = np.asarray(values, dtype=np.float64)
    low, effect, high = _t_interval(x)
    return _clause(name, x, effect, low, high, direction, bound, unit)


def ratio_clause(
    name: str, over: ArrayLike, under: ArrayLike, direction: Direction, bound: float, *, unit: str = "x"
) -> Clause:
    """Geometric mean over seeds of over / under, paired, with the t interval of its logarithm.

    >>> ratio_clause("fall", [8.0, 10.0], [1.0, 1.25], ">=", 5.0).effect
    8.0
    """
    a, b = np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log(a / b)
    low, effect, high = _t_interval(x)
    with np.errstate(over="ignore"):
        numbers = [float(np.exp(v)) for v in (effect, low, high)]
    return _clause(name, x, round(numbers[0], 12), numbers[1], numbers[2], direction, bound, unit)


def paired_clause(
    name: str,
    differences: ArrayLike,
    direction: Direction,
    bound: float,
    *,
    unit: str = "points",
    scale: float = 100.0,
) -> Clause:
    """Mean of (seeds, images) paired differences, with the bootstrap interval over seeds and over images.

    Both the seeds and the images are drawn anew, each with replacement, so that the interval includes the test set's
    own sampling. The draws are fixed: the same differences give the same interval.
    """
    x = np.asarray(differences, dtype=np.float64) * scale
    seeds, images = x.shape
    if seeds < 2:
        return _clause(name, x[:, 0], float(x.mean()), math.nan, math.nan, direction, bound, unit)
    rng = np.random.default_rng(0)
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    image_weights = rng.multinomial(images, np.full(images, 1 / images), DRAWS) / images
    draws = np.einsum("ds,ds->d", seed_weights, image_weights @ x.T)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return _clause(name, x[:, 0], float(x.mean()), float(low), float(high), direction, bound, unit)


def equivalence(clause_of: Any, name: str, values: ArrayLike, margin: float, **options: Any) -> list[Clause]:
    """Two clauses: the effect is above minus the margin, and below the margin."""
    return [
        clause_of(f"{name}, above -{margin:g}", values, ">=", -margin, **options),
        clause_of(f"{name}, below {margin:g}", values, "<=", margin, **options),
    ]


def _t_interval(x: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    if len(x) == 0 or not np.isfinite(x).all():
        return math.nan, math.nan, math.nan
    mean = float(x.mean())
    if len(x) < 2:
        return math.nan, mean, math.nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean - half, mean, mean + half


def _clause(
    name: str,
    values: np.ndarray[Any, Any],
    effect: float,
    low: float,
    high: float,
    direction: Direction,
    bound: float,
    unit: str,
) -> Clause:
    bad = int((~np.isfinite(values)).sum())
    reason = f"undefined for {bad} of {len(values)} seeds" if bad else "one seed gives no interval" * (len(values) < 2)
    return Clause(
        name=name,
        effect=effect,
        low=low,
        high=high,
        direction=direction,
        bound=bound,
        seeds=len(values),
        unit=unit,
        reason=reason,
    )
