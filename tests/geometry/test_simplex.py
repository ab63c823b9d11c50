"""The toolbox against its closed forms, scipy and its own inverses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleate.geometry import softmax
from nucleate.geometry.hull import least_squares, nearest_in_hull
from nucleate.geometry.margins import margin_optimum, one_vs_rest_margin
from nucleate.geometry.simplex import (
    barycentric,
    boundary,
    distance_to_simplex,
    faces,
    helmert,
    is_affinely_independent,
    is_regular,
    nearest_etf,
    project_to_simplex,
    simplex_etf,
)

LAW = settings(max_examples=40, deadline=None, derandomize=True)
F64 = torch.float64


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("c", "d"), [(2, 1), (2, 5), (3, 2), (7, 6), (7, 7), (10, 64), (100, 99)])
@pytest.mark.parametrize("seed", [None, 3])
def test_etf_for_every_width_that_has_one(c, d, seed):
    # Trap 11: others need d >= C, or silently return something else.
    v = simplex_etf(c, d, generator=None if seed is None else rng(seed), dtype=F64)
    target = c / (c - 1) * (torch.eye(c, dtype=F64) - 1 / c)
    torch.testing.assert_close(v @ v.T, target, rtol=0, atol=1e-12)
    torch.testing.assert_close(v.sum(0), torch.zeros(d, dtype=F64), rtol=0, atol=1e-12)
    assert is_regular(v)
    assert torch.pdist(v).max().item() == pytest.approx(math.sqrt(2 * c / (c - 1)))
    # The inradius 1/(C-1): distance of the centre from the facet opposite a vertex.
    if c > 2:
        assert nearest_in_hull(v[1:], torch.zeros(d, dtype=F64)).distance == pytest.approx(1 / (c - 1))


def test_etf_needs_room_and_two_vertices():
    with pytest.raises(ValueError, match="at least 4 dimensions, not 3"):
        simplex_etf(5, 3)
    with pytest.raises(ValueError, match="two vertices"):
        simplex_etf(1)
    assert simplex_etf(4).shape == (4, 3) and simplex_etf(4).dtype == torch.get_default_dtype()
    assert not torch.equal(simplex_etf(4, 9, generator=rng(0)), simplex_etf(4, 9, generator=rng(1)))


@pytest.mark.parametrize("c", [2, 3, 10])
def test_helmert_rows_are_orthonormal_and_centred(c):
    q = helmert(c)
    torch.testing.assert_close(q @ q.T, torch.eye(c - 1, dtype=F64))
    torch.testing.assert_close(q.T @ q, torch.eye(c, dtype=F64) - 1 / c)


def test_affine_independence():
    g = rng(0)
    for c, d in ((3, 2), (4, 9), (1, 3)):
        assert is_affinely_independent(torch.randn(c, d, generator=g) + 100)
    assert not is_affinely_independent(torch.randn(4, 2, generator=g))
    line = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    assert not is_affinely_independent(line)
    assert not is_regular(line) and not is_regular(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert is_regular(torch.eye(5) * 3 + 1) and is_regular(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="vertices must be"):
        is_affinely_independent(torch.zeros(3))


def test_faces_are_counted_by_binomials_and_the_boundary_of_a_boundary_is_nothing():
    for k in range(5):
        assert len(list(faces(5, k))) == math.comb(5, k + 1)
    assert sum((-1) ** k * len(list(faces(5, k))) for k in range(5)) == 1  # Euler characteristic of a ball
    for face in faces(5, 3):
        total: dict[tuple[int, ...], int] = {}
        for sign, facet in boundary(face):
            for inner, ridge in boundary(facet):
                total[ridge] = total.get(ridge, 0) + sign * inner
        assert set(total.values()) == {0}
    assert boundary((3,)) == []
    with pytest.raises(ValueError, match=r"0\.\.2, not 3"):
        faces(3, 3)


@LAW
@given(st.integers(2, 6), st.integers(0, 4), st.integers(0, 10**6))
def test_barycentric_coordinates_invert_their_combination(c, extra, seed):
    g = rng(seed)
    v = torch.randn(c, c - 1 + extra, generator=g, dtype=F64) + 3
    p = torch.softmax(torch.randn(5, c, generator=g, dtype=F64), 1)
    if torch.linalg.cond(v[1:] - v[0]) < 1e4:
        torch.testing.assert_close(barycentric(p @ v, v), p, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(project_to_simplex(p @ v, v), p @ v, rtol=0, atol=1e-7)


def test_barycentric_of_a_centred_etf_is_its_closed_form():
    v = simplex_etf(4, 6, generator=rng(1), dtype=F64)
    x = 0.3 * torch.randn(7, 3, generator=rng(2), dtype=F64) @ v[:3]
    torch.testing.assert_close(barycentric(x, v), 1 / 4 + 3 / 4 * x @ v.T)
    assert barycentric(torch.ones(2, 3), torch.ones(1, 3)).tolist() == [[1.0], [1.0]]
    with pytest.raises(ValueError, match="dependent"):
        barycentric(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    with pytest.raises(ValueError, match="points must be"):
        barycentric(torch.zeros(1, 3), torch.eye(2))


def _by_scipy(v: np.ndarray, x: np.ndarray) -> float:
    c = len(v)
    result = scipy.optimize.minimize(
        lambda p: ((p @ v - x) ** 2).sum(),
        np.full(c, 1 / c),
        jac=lambda p: 2 * v @ (p @ v - x),
        bounds=[(0, 1)] * c,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(c)},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-15},
    )
    return float(np.sqrt(result.fun))


@pytest.mark.parametrize(("c", "d"), [(3, 2), (5, 8), (12, 4), (30, 3)])
def test_projection_on_a_hull_agrees_with_scipy_and_carries_its_certificate(c, d):
    g = rng(c)
    v = torch.randn(c, d, generator=g, dtype=F64)
    for scale in (0.1, 1.0, 10.0):
        x = scale * torch.randn(d, generator=g, dtype=F64)
        near = nearest_in_hull(v, x)
        assert near.lower <= near.distance + 1e-12 and near.distance - near.lower < 1e-8 * max(1.0, scale) + (
            near.distance if near.distance < 1e-8 else 0
        )
        assert near.distance == pytest.approx(_by_scipy(v.numpy(), x.numpy()), abs=2e-6)
        assert float(near.weights.min()) >= 0 and float(near.weights.sum()) == pytest.approx(1)
        assert distance_to_simplex(x[None], v).item() == pytest.approx(near.distance, abs=1e-12)


def test_hull_of_repeated_and_aligned_vertices():
    v = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [1.0, 0.5]])
    near = nearest_in_hull(v, torch.zeros(2))
    assert near.distance == pytest.approx(1) and near.lower == pytest.approx(1)
    assert nearest_in_hull(v[:1], v[0]).distance == 0


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 5)])
def test_least_squares_are_right_and_equal_in_every_bit_whatever_memory_held_before(rows, columns):
    g = rng(0)
    a, b = torch.randn(rows, columns, generator=g, dtype=F64), torch.randn(rows, generator=g, dtype=F64)
    found = set()
    for number in (0, 1, 7, -1) * 5:
        dirty = [torch.full((size,), number, dtype=torch.int32) for size in range(1, 200)]
        del dirty
        found.add(tuple(least_squares(a.clone(), b.clone()).tolist()))
    assert len(found) == 1
    np.testing.assert_allclose(found.pop(), np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0], rtol=1e-12)


@LAW
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_projection_on_the_standard_simplex(values):
    x = torch.tensor(values, dtype=F64)
    p = project_to_simplex(x)
    assert float(p.min()) >= 0 and float(p.sum()) == pytest.approx(1)
    torch.testing.assert_close(project_to_simplex(p), p)
    # The condition of optimality: x - p is constant where p > 0, and not larger elsewhere.
    slack = x - p
    assert float(slack[p > 1e-9].max() - slack[p > 1e-9].min()) < 1e-9
    assert float(slack.max()) <= float(slack[p > 1e-9].max()) + 1e-9
    hull = project_to_simplex(x[None], torch.eye(len(x), dtype=F64))[0]
    torch.testing.assert_close(hull, p, rtol=0, atol=1e-7)


def test_nearest_etf_finds_it_and_no_rotation_is_nearer():
    g = rng(5)
    v = simplex_etf(5, 9, generator=g, dtype=F64)
    fit = nearest_etf(2.5 * v + 4)
    assert fit.scale == pytest.approx(2.5) and fit.distance < 1e-12
    torch.testing.assert_close(fit.vertices, v)
    noisy = v + 0.3 * torch.randn(5, 9, generator=g, dtype=F64)
    fit = nearest_etf(noisy)
    mc = noisy - noisy.mean(0)
    best = torch.linalg.matrix_norm(mc - fit.scale * fit.vertices)
    for _ in range(50):
        other = simplex_etf(5, 9, generator=g, dtype=F64)
        small = torch.linalg.matrix_exp(0.05 * _skew(torch.randn(9, 9, generator=g, dtype=F64)))
        for candidate in (other, fit.vertices @ small):
            scale = (candidate * mc).sum() / 5
            assert torch.linalg.matrix_norm(mc - scale * candidate) >= best - 1e-12
    # In the coordinates of its axes the vertices are the canonical ones.
    torch.testing.assert_close(fit.vertices @ fit.axes.T, simplex_etf(5, dtype=F64))
    torch.testing.assert_close(fit.axes @ fit.axes.T, torch.eye(4, dtype=F64))
    assert 0 <= nearest_etf(torch.randn(5, 9, generator=g)).distance <= 1
    with pytest.raises(ValueError, match="5 vertices in 3"):
        nearest_etf(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="all equal"):
        nearest_etf(torch.ones(3, 3))


def _skew(a: torch.Tensor) -> torch.Tensor:
    return a - a.T


@LAW
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6), st.floats(-3, 3))
def test_log_ratio_coordinates(values, shift):
    z = torch.tensor(values, dtype=F64)
    p, q = torch.softmax(z, 0), torch.softmax(z.flip(0) * 0.5, 0)
    torch.testing.assert_close(softmax.clr(torch.softmax(z + shift, 0)), z - z.mean(), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.softmax(softmax.clr(p), 0), p)
    torch.testing.assert_close(softmax.ilr_inverse(softmax.ilr(p)), p)
    distance = torch.linalg.vector_norm(softmax.ilr(p) - softmax.ilr(q)).item()
    assert distance == pytest.approx(softmax.aitchison_distance(p, 3 * q).item(), abs=1e-9)


@LAW
@given(st.integers(2, 50), st.floats(-3, 12))
def test_softmax_on_an_etf_is_its_closed_form(c, scale):
    logits = scale * simplex_etf(c, dtype=F64) @ simplex_etf(c, dtype=F64).T
    p = torch.softmax(logits, 1)
    assert softmax.etf_probability(scale, c) == pytest.approx(p[0, 0].item(), rel=1e-9)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(c)).item()
    assert softmax.etf_cross_entropy(scale, c) == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert softmax.etf_scale(softmax.etf_probability(scale, c), c) == pytest.approx(scale, abs=1e-4)
    assert p[0, 1:].max().item() == pytest.approx((1 - p[0, 0].item()) / (c - 1), rel=1e-6, abs=1e-12)


def test_vertex_distance():
    p = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 1.0, 0.0]])
    got = softmax.vertex_distance(p, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(
        got, torch.tensor([0.0, math.sqrt(2 / 3), math.sqrt(2)], dtype=F64), rtol=1e-6, atol=1e-7
    )
    assert p[0, 0] == 1
    for labels in (torch.tensor([0, 1]), torch.tensor([0, 1, 3]), torch.tensor([0, 1, -1])):
        with pytest.raises(ValueError, match=r"expected|labels"):
            softmax.vertex_distance(p, labels)
    with pytest.raises(ValueError, match="between 0 and 1"):
        softmax.etf_scale(1.0, 3)


def test_margins_reach_the_known_optima():
    for c, d in ((3, 2), (5, 4), (5, 9)):
        m = one_vs_rest_margin(simplex_etf(c, d, generator=rng(0)))
        assert m.value == pytest.approx(c / (c - 1), rel=1e-6) == margin_optimum(c, d).upper
    for c in (4, 5, 12):
        angle = torch.arange(c, dtype=F64) * 2 * math.pi / c
        circle = torch.stack([angle.cos(), angle.sin()], 1)
        assert one_vs_rest_margin(circle).value == pytest.approx(margin_optimum(c, 2).lower, rel=1e-9)
    cross = torch.cat([torch.eye(3), -torch.eye(3)])
    assert one_vs_rest_margin(2 * cross).value == pytest.approx(1) == margin_optimum(6, 3).upper


@pytest.mark.parametrize(("c", "d"), [(5, 3), (7, 3), (20, 5), (40, 8), (9, 2)])
def test_no_margin_exceeds_its_bound_and_the_gap_is_closed(c, d):
    best = margin_optimum(c, d)
    assert best.lower <= best.upper
    for seed in range(5):
        m = one_vs_rest_margin(torch.randn(c, d, generator=rng(seed)))
        assert m.value <= best.upper + 1e-9
        assert m.value - m.lower < 1e-8
        assert m.per_class.min().item() == m.value


def test_margin_errors_and_monotone_bounds():
    with pytest.raises(ValueError, match="length zero"):
        one_vs_rest_margin(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="two rows"):
        one_vs_rest_margin(torch.ones(1, 2))
    with pytest.raises(ValueError, match="in 1 dimensions"):
        margin_optimum(3, 1)
    for d in (3, 8):
        uppers = [margin_optimum(c, d).upper for c in range(2, 200)]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(uppers))
    assert margin_optimum(100, 8).lower == pytest.approx(0.1284, abs=1e-4)
