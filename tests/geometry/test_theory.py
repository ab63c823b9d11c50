"""Golden tests: the unconstrained-features minimiser, the squared-loss split, imbalance, depth, VCI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nucleate.geometry.collapse import Moments, collapse
from nucleate.geometry.decomposition import squared_loss
from nucleate.geometry.depth import effective_depth
from nucleate.geometry.imbalance import minority_angle, seli_distance, seli_targets
from nucleate.geometry.means import etf_distance, etf_distance_floor, subspace_overlap
from nucleate.geometry.simplex import simplex_etf
from nucleate.geometry.softmax import etf_cross_entropy
from nucleate.geometry.uniformity import hyperspherical_energy
from nucleate.geometry.vci import vci

F64 = torch.float64
C, D, N = 4, 6, 5
DECAY_W, DECAY_H = 5e-3, 1e-3


def ufm_loss(w: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """Unconstrained features: cross-entropy of W h plus decay on both (Zhu et al. 2021)."""
    loss = torch.nn.functional.cross_entropy(h @ w.T, y)
    return loss + DECAY_W / 2 * w.square().sum() + DECAY_H / 2 * h.square().sum()


def ufm_minimum() -> tuple[Tensor, Tensor, Tensor]:
    """Closed form: W an ETF of scale a, h = sqrt(l_W / (l_H n)) w_y; a by bisection on the derivative in a^2."""
    ratio = math.sqrt(DECAY_W / (DECAY_H * N))

    def slope(a2: float) -> float:
        step = 1e-7
        up, down = (etf_cross_entropy(ratio * (a2 + s), C) for s in (step, -step))
        return (up - down) / (2 * step) + DECAY_W * C

    low, high = 1e-3, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    w = math.sqrt(low) * simplex_etf(C, D, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = torch.arange(C * N) % C
    return w, ratio * w[y], y


def test_the_closed_form_is_a_critical_point_and_is_collapsed():
    w, h, y = ufm_minimum()
    w, h = w.requires_grad_(), h.clone().detach().requires_grad_()
    gradients = torch.autograd.grad(ufm_loss(w, h, y), (w, h))
    assert max(float(g.abs().max()) for g in gradients) < 1e-6
    got = collapse(h, y, weight=w)
    for name in ("nc1", "nc1_quotient", "nc1_cdnv", "nc2_equinorm", "nc2_equiangle", "nc2_max_angle", "nc2_etf", "nc3",
                 "nc3_gram", "nc3_cosine", "nc3_unc", "nc4", "bias_collapse", "boundary_spread"):  # fmt: skip
        assert getattr(got, name) == pytest.approx(0, abs=2e-7), name
    assert got.ncc_accuracy == 1 and got.nc3_subspace == pytest.approx(1)


def test_training_unconstrained_features_reaches_the_same_minimum():
    g = torch.Generator().manual_seed(1)
    w = (0.1 * torch.randn(C, D, generator=g, dtype=F64)).requires_grad_()
    h = (0.1 * torch.randn(C * N, D, generator=g, dtype=F64)).requires_grad_()
    y = torch.arange(C * N) % C
    start = collapse(h, y, weight=w)
    optimizer = torch.optim.LBFGS(
        [w, h], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ufm_loss(w, h, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = ufm_minimum()
    assert float(ufm_loss(w, h, y).detach()) == pytest.approx(float(ufm_loss(*best)), rel=1e-8)
    end = collapse(h, y, weight=w)
    assert end.nc1 < 1e-9 < start.nc1
    for name in ("nc2_equinorm", "nc2_equiangle", "nc2_etf", "nc3_gram", "nc3_cosine"):
        assert getattr(end, name) < 1e-4 < getattr(start, name), name
    assert end.nc3 < 1e-8 and end.nc4 == 0


def balanced(ridge: float) -> tuple[Moments, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(2)
    y = torch.arange(60) % 3
    x = torch.randn(3, 5, generator=g, dtype=F64)[y] + 0.4 * torch.randn(60, 5, generator=g, dtype=F64)
    w, b = torch.randn(3, 5, generator=g, dtype=F64), torch.randn(3, generator=g, dtype=F64)
    m = Moments(3, 5, second_moment=True)
    m.update(x, y)
    miss = x @ w.T + b - torch.nn.functional.one_hot(y, 3)
    loss = float(miss.square().sum() / 120 + ridge / 2 * (w.square().sum() + b.square().sum()))
    return m, w, b, loss


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_the_three_parts_sum_to_the_squared_loss(ridge):
    m, w, b, loss = balanced(ridge)
    parts = squared_loss(m, w, b, ridge=ridge)
    assert parts.total == pytest.approx(loss, rel=1e-9)
    assert min(parts.nc1, parts.nc23, parts.off_optimum) >= 0
    at_best = squared_loss(m, parts.least_squares[:, :5], parts.least_squares[:, 5], ridge=ridge)
    assert at_best.off_optimum == pytest.approx(0, abs=1e-12)
    assert at_best.total <= parts.total


def test_the_split_names_what_it_needs():
    m, w, b, _ = balanced(0.0)
    with pytest.raises(ValueError, match="second moment"):
        squared_loss(Moments(3, 5), w, b)
    m.update(torch.zeros(1, 5), torch.tensor([0]))
    with pytest.raises(ValueError, match="balanced"):
        squared_loss(m, w, b)
    few = Moments(2, 5, second_moment=True)
    few.update(torch.eye(5)[:4], torch.arange(4) % 2)
    with pytest.raises(ValueError, match="ridge > 0"):
        squared_loss(few, w[:2], b[:2])
    assert squared_loss(few, w[:2], b[:2], ridge=0.1).total > 0


def test_seli_is_the_etf_for_equal_counts_and_solves_its_definition_otherwise():
    for target in seli_targets(torch.tensor([7, 7, 7, 7])):
        assert seli_distance(simplex_etf(4, 5), target) == pytest.approx(0, abs=1e-6)
    counts = torch.tensor([50, 50, 5, 5])
    y = torch.repeat_interleave(torch.arange(4), counts)
    z = torch.nn.functional.one_hot(y, 4).double().T - 1 / 4  # simplex-encoded labels
    left, values, right = torch.linalg.svd(z, full_matrices=False)
    w, h = (left[:, :3] * values[:3].sqrt()), (right[:3].T * values[:3].sqrt())
    target_w, target_m = seli_targets(counts)
    torch.testing.assert_close(w @ w.T, target_w)
    means = torch.stack([h[y == k].mean(0) for k in range(4)])
    torch.testing.assert_close(means @ means.T, target_m)
    assert seli_distance(w, target_w) < 1e-12 < 0.1 < seli_distance(simplex_etf(4, 5), target_w)
    with pytest.raises(ValueError, match="each with points"):
        seli_targets(torch.tensor([3, 0]))


def test_minority_angle():
    v = simplex_etf(6, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    counts = torch.tensor([100, 100, 100, 1, 1, 1])
    assert minority_angle(v, counts) == pytest.approx(-1 / 5)
    merged = torch.cat([v[:3], v[3:].mean(0).expand(3, -1)])
    assert minority_angle(merged, counts) == pytest.approx(1)
    assert math.isnan(minority_angle(v, torch.full((6,), 5)))
    assert minority_angle(v, torch.full((6,), 5), minority=torch.arange(6) < 2) == pytest.approx(-1 / 5)


@pytest.mark.parametrize(
    ("errors", "eps", "first", "lasting"),
    [
        ([0.5, 0.2, 0.0], 0.0, 2, 2),
        ([0.5, 0.0, 0.1, 0.0], 0.0, 1, 3),
        ([0.5, 0.0, 0.1], 0.0, 1, None),
        ([0.5, 0.4], 0.1, None, None),
        ([0.0, 0.0], 0.0, 0, 0),
        ([math.nan, 0.05, 0.05], 0.1, 1, 1),
        ([], 0.1, None, None),
    ],
)
def test_effective_depth(errors, eps, first, lasting):
    depth = effective_depth(errors, eps=eps)
    assert (depth.first, depth.lasting) == (first, lasting)


def test_effective_depth_refuses_what_is_no_error_rate():
    with pytest.raises(ValueError, match="layer 1"):
        effective_depth([0.5, 1.5])
    with pytest.raises(ValueError, match="eps"):
        effective_depth([0.5], eps=-1)


def test_vci_refuses_too_few_points():
    m = Moments(2, 9, second_moment=True)
    m.update(torch.randn(10, 9), torch.arange(10) % 2)
    with pytest.raises(ValueError, match="identically 0"):
        vci(m)
    with pytest.raises(ValueError, match="second_moment=True"):
        vci(Moments(2, 9))


def test_rank_floor_of_the_etf_distance():
    for c, d in ((10, 3), (30, 8)):
        # Eigenvalues as equal as rank d allows reach the floor: project the simplex on d of its axes.
        flat = simplex_etf(c, dtype=F64)[:, :d]
        assert etf_distance(flat) == pytest.approx(etf_distance_floor(c, d), abs=1e-9)
        assert etf_distance(torch.randn(c, d, generator=torch.Generator().manual_seed(0))) > etf_distance_floor(c, d)
    assert etf_distance_floor(5, 4) == 0
    # Tabulated for a vocabulary of 29,233 in 64 and 1,024 dimensions.
    assert etf_distance_floor(29_233, 64) == pytest.approx(1.381, abs=1e-3)
    assert etf_distance_floor(29_233, 1024) == pytest.approx(1.275, abs=1e-3)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    assert collapse(x, torch.arange(60) % 10, convention="wu2024").nc2_etf > etf_distance_floor(10, 4)


def test_orthonormal_classifier_and_subspaces():
    c = 5
    assert etf_distance(torch.eye(c)) == pytest.approx(math.sqrt(2 - 2 * math.sqrt((c - 1) / c)))
    a = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert subspace_overlap(a, torch.randn(3, 3, generator=torch.Generator().manual_seed(1)) @ a) == pytest.approx(1)
    assert subspace_overlap(torch.eye(8)[:3], torch.eye(8)[3:6]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10, 101])
def test_energies_of_a_simplex_are_those_of_its_edge(classes: int) -> None:
    rows = simplex_etf(classes, 128).double() * torch.arange(1, classes + 1)[:, None]
    edge = math.sqrt(2 * classes / (classes - 1))
    wanted = {"distance": edge, "log": -math.log(edge), 3: edge**-3, -2: -(edge**2)}
    for kernel, value in wanted.items():
        energy = hyperspherical_energy(rows, kernel)
        assert energy.mean == pytest.approx(value, rel=1e-6)
        assert energy.variance == pytest.approx(0, abs=1e-10)


def test_energies_are_means_over_pairs() -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = np.array([-math.log(float((unit[i] - unit[j]).norm())) for i in range(7) for j in range(i)])
    energy = hyperspherical_energy(rows)
    assert (energy.mean, energy.variance) == pytest.approx((pairs.mean(), pairs.var()))
    for bad, message in (("cosine", "not 'cosine'"), (0, "other than 0, not 0")):
        with pytest.raises(ValueError, match=message):
            hyperspherical_energy(rows, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row 1 has length zero"):
        hyperspherical_energy(torch.eye(3)[[0, 0]] * torch.tensor([[1.0], [0.0]]))
