"""The verdict rule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nucleate.claims.verdict import Clause, equivalence, mean_clause, paired_clause, ratio_clause, verdict


def clause(low: float, high: float, direction: str = ">=", bound: float = 0.0) -> Clause:
    return Clause(name="x", effect=(low + high) / 2, low=low, high=high, direction=direction, bound=bound, seeds=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "direction", "word"),
    [
        (0.0, 1.0, ">=", "holds"),
        (-0.1, 1.0, ">=", "inconclusive"),
        (-2.0, -0.1, ">=", "fails"),
        (-2.0, 0.0, "<=", "holds"),
        (-2.0, 0.1, "<=", "inconclusive"),
        (0.1, 2.0, "<=", "fails"),
        (math.nan, 2.0, "<=", "inconclusive"),
        (0.0, 0.0, ">", "fails"),
        (0.0, 1.0, ">", "inconclusive"),
        (-1.0, -0.5, "<", "holds"),
    ],
)
def test_one_clause(low: float, high: float, direction: str, word: str) -> None:
    assert clause(low, high, direction).verdict == word


def test_all_clauses_must_hold_and_one_failure_decides() -> None:
    good, bad, unsure = clause(1, 2), clause(-2, -1), clause(-1, 1)
    assert verdict([good, good]) == "holds"
    assert verdict([good, unsure]) == "inconclusive"
    assert verdict([good, unsure, bad]) == "fails"
    assert verdict([]) == "inconclusive"
    beside = replace(bad, judged=False)
    assert verdict([good, beside]) == "holds" and verdict([beside]) == "inconclusive"


def test_the_mean_interval_is_students() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    want = stats.t.interval(0.95, 3, loc=x.mean(), scale=stats.sem(x))
    got = mean_clause("x", x, ">=", 0)
    assert (got.low, got.high) == pytest.approx(want)


def test_a_ratio_is_judged_on_its_logarithm() -> None:
    got = ratio_clause("x", [1.0, 100.0], [1.0, 1.0], ">=", 1)
    assert got.effect == pytest.approx(10)
    assert got.low * got.high == pytest.approx(100)
    assert ratio_clause("x", [1.0, 2.0], [0.0, 1.0], ">=", 1).verdict == "inconclusive"
    assert "1 of 2" in ratio_clause("x", [1.0, 2.0], [0.0, 1.0], ">=", 1).reason


def test_one_seed_is_never_enough() -> None:
    assert mean_clause("x", [5.0], ">=", 0).verdict == "inconclusive"
    assert paired_clause("x", np.ones((1, 50)), ">=", 0).verdict == "inconclusive"


def test_the_bootstrap_covers_images_and_seeds() -> None:
    rng = np.random.default_rng(1)
    seed_effect, image_effect = rng.normal(0, 0.1, (10, 1)), rng.normal(0, 1, (1, 400))
    got = paired_clause("x", 0.5 + seed_effect + image_effect, ">=", 0, scale=1.0)
    analytic = 2 * 1.96 * math.sqrt(seed_effect.var() / 10 + image_effect.var() / 400)
    assert got.high - got.low == pytest.approx(analytic, rel=0.1)
    assert paired_clause("x", np.zeros((5, 20)), ">=", 0).low == 0


def test_bootstrap_coverage_is_near_nominal() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(60):
        x = rng.normal(0, 0.2, (12, 1)) + rng.normal(0, 1, (1, 60)) + rng.normal(0, 1, (12, 60))
        got = paired_clause("x", x, ">=", 0, scale=1.0)
        hits += got.low <= 0 <= got.high
    assert hits >= 52


def test_equivalence_needs_both_sides() -> None:
    x = np.array([0.1, 0.2, 0.15])
    assert verdict(equivalence(mean_clause, "gap", x, 1.0)) == "holds"
    assert verdict(equivalence(mean_clause, "gap", x, 0.01)) == "fails"
