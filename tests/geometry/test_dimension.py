from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleate.geometry.dimension import (
    effective_rank,
    intrinsic_dimension,
    knn_density,
    participation,
    participation_ratio,
    stable_rank,
    two_nn,
)
from nucleate.geometry.simplex import simplex_etf


def cube(n: int, dim: int, ambient: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(ambient, ambient, generator=g, dtype=torch.float64)).Q
    # A torus without borders, so that the density is flat everywhere: each circle has length 1.
    angle = 2 * math.pi * torch.rand(n, dim, generator=g, dtype=torch.float64)
    flat = torch.cat([angle.cos(), angle.sin()], 1) / (2 * math.pi)
    return torch.nn.functional.pad(flat, (0, ambient - 2 * dim)) @ turn


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_ml_is_the_dimension_at_any_fraction(dim, fraction):
    estimates = [two_nn(cube(1000, dim, 8, seed), fraction=fraction) for seed in range(4)]
    mean = sum(e.value for e in estimates) / 4
    # Ratios of mutual neighbours are dependent, and curvature costs a little: four standard errors and 3 %.
    assert mean == pytest.approx(dim, abs=4 * estimates[0].stderr / 2 + 0.03 * dim)


def test_without_the_censoring_term_it_would_be_far_too_high():
    x = cube(2000, 2, 6)
    result = two_nn(x, fraction=0.9)
    from nucleate.geometry.neighbours import neighbour_search

    d = neighbour_search(x, 2).distances
    t = (d[:, 1] / d[:, 0]).log().sort().values[:1800]
    assert float(1800 / t.sum()) / result.value == pytest.approx(1.34, abs=0.06)


def test_base_is_the_zero_intercept_fit():
    x = cube(800, 3, 7)
    from scipy.spatial import cKDTree

    d, _i = cKDTree(x.numpy()).query(x.numpy(), k=3)
    t = np.sort(np.log(d[:, 2] / d[:, 1]))[:720]
    y = -np.log(1 - np.arange(1, 721) / 800)
    assert two_nn(x, method="base").value == pytest.approx(float((t @ y) / (t @ t)), rel=1e-9)
    t = np.log(d[:, 2] / d[:, 1])
    assert two_nn(x).value == pytest.approx(799 / t.sum(), rel=1e-9)
    assert intrinsic_dimension(x) == two_nn(x).value


def test_twins_are_dropped_and_counted_and_nothing_is_silently_zero():
    x = cube(300, 2, 5)
    result = two_nn(torch.cat([x, x[:40]]))
    assert result.dropped == 80
    assert result.used == 260
    assert "80 of 340" in str(result.reason)
    constant = two_nn(torch.ones(10, 3))
    assert math.isnan(constant.value) and "0 of 10" in str(constant.reason)
    lattice = two_nn(torch.eye(9))
    assert math.isnan(lattice.value) and "tied" in str(lattice.reason)


def test_dimension_survives_collapse_at_an_offset():
    g = torch.Generator().manual_seed(0)
    means = 5 + torch.randn(4, 64, generator=g)
    plane = torch.rand(1200, 2, generator=g) @ torch.randn(2, 64, generator=g)
    x = means[torch.arange(1200) % 4].double() + 1e-4 * plane.double()
    assert intrinsic_dimension(x) == pytest.approx(2, abs=0.25)


def test_spectra_of_known_covariances():
    etf = simplex_etf(6, 20, generator=torch.Generator().manual_seed(0))
    x = etf.repeat(30, 1) + 3
    assert participation_ratio(x) == pytest.approx(5, rel=1e-6)
    assert effective_rank(x).value == pytest.approx(5, rel=1e-5)
    assert stable_rank(etf) == pytest.approx(5, rel=1e-5)
    skewed = torch.diag(torch.tensor([3.0, 1.0]))
    both = torch.cat([skewed, -skewed])
    assert participation_ratio(both) == pytest.approx((9 + 1) ** 2 / (81 + 1))
    p = torch.tensor([0.9, 0.1], dtype=torch.float64)
    assert effective_rank(both).value == pytest.approx(float((-(p * p.log()).sum()).exp()))
    assert math.isnan(stable_rank(torch.zeros(3, 3)))


def test_participation_of_noise_is_the_chance_level():
    g = torch.Generator().manual_seed(0)
    for n, d in ((400, 50), (50, 400), (100, 100)):
        result = participation(torch.randn(n, d, generator=g))
        assert result.value == pytest.approx(result.chance, rel=0.03)
        assert result.bound == min(n - 1, d)
        assert (result.reason is None) == (n > d)


def test_fewer_points_than_dimensions_is_normalised_by_what_is_reachable():
    x = torch.eye(12, 40, dtype=torch.float64)
    assert effective_rank(x).normalised == pytest.approx(1)
    assert participation(x).normalised == pytest.approx(1)
    constant = participation(torch.ones(5, 3))
    assert math.isnan(constant.value) and "equal" in str(constant.reason)


def test_density_is_that_of_a_uniform_torus():
    x = cube(3000, 2, 4)
    log_density = knn_density(x, 40, dimension=2.0)
    assert float(log_density.mean()) == pytest.approx(0, abs=0.06)
    assert float(log_density.std()) == pytest.approx(1 / math.sqrt(40), rel=0.25)
    assert knn_density(torch.ones(5, 2), 2, dimension=1.0).tolist() == [math.inf] * 5


@given(seed=st.integers(0, 500), power=st.integers(-8, 8))
@settings(max_examples=20, deadline=None)
def test_no_measure_sees_shift_scale_or_rotation(seed, power):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 5, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    moved = (x @ turn + 1) * 2.0**power
    for measure in (intrinsic_dimension, participation_ratio, lambda a: effective_rank(a).value):
        assert measure(moved) == pytest.approx(measure(x), rel=1e-8)
    assert stable_rank(4 * x @ turn) == pytest.approx(stable_rank(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_nn(torch.zeros(2, 3)), "at least 3"),
        (lambda: two_nn(np.zeros((9, 3))), "must be a tensor, not ndarray"),  # type: ignore[arg-type]
        (lambda: intrinsic_dimension(torch.ones(9, 3)), "no intrinsic dimension: only 0 of 9 points have no twin"),
        (lambda: two_nn(torch.randn(9, 3), fraction=0), "fraction"),
        (lambda: two_nn(torch.randn(9, 3), method="mean"), "method"),  # type: ignore[arg-type]
        (lambda: participation_ratio(torch.full((3, 2), math.nan)), "NaN"),
        (lambda: effective_rank(torch.zeros(3, 2, dtype=torch.int64)), "floating"),
        (lambda: knn_density(torch.ones(9, 2), 3), "give dimension="),
        (lambda: knn_density(torch.randn(9, 2), 3, dimension=-1.0), "positive"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
