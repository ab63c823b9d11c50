"""Kernel regression and its dynamics against refits, explicit steps and linear regression."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nucleate.geometry.similarity import cka
from nucleate.kernels.empirical import Linearised, empirical_ntk
from nucleate.kernels.exact import ntk
from nucleate.kernels.regression import (
    Dynamics,
    alignment,
    complexity_bound,
    kernel_distance,
    leave_one_out,
    relative_drift,
    solve,
)
from nucleate.models.mlp import MLP


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_leave_one_out_is_the_refit_without_the_point(ridge: float) -> None:
    x, y = draw(15, 4), draw(15, 2, seed=1)
    kernel = ntk(x, depth=2)
    quick = leave_one_out(kernel, y, ridge=ridge)
    for i in range(15):
        rest = [j for j in range(15) if j != i]
        refit = solve(kernel[rest][:, rest], y[rest], ridge=ridge)
        torch.testing.assert_close(y[i] - kernel[i, rest] @ refit, quick[i], rtol=1e-5, atol=1e-6)


def test_a_linear_kernel_is_ridge_regression() -> None:
    x, y = draw(30, 4), draw(30, 1, seed=1)
    weights = torch.linalg.solve(x.T @ x + 0.7 * torch.eye(4).double(), x.T @ y)
    torch.testing.assert_close(x.T @ solve(x @ x.T, y, ridge=0.7), weights)


@pytest.mark.parametrize("time", [0, 1, 7, 50])
def test_discrete_dynamics_are_the_steps(time: int) -> None:
    kernel, y = ntk(draw(10, 4), depth=1), draw(10, 3, seed=1)
    cross = kernel[:4]
    d = Dynamics(kernel, y)
    for rate in (0.1 * d.largest_rate, 0.9 * d.largest_rate):
        f = torch.zeros(10, 3, dtype=torch.float64)
        a = torch.zeros(10, 3, dtype=torch.float64)
        for _ in range(time):
            a += rate / 10 * (y - f)
            f = kernel @ a
        torch.testing.assert_close(d.change(cross, time, rate=rate, discrete=True), cross @ a)


def test_small_steps_approach_the_flow_and_the_flow_the_interpolator() -> None:
    kernel, y = ntk(draw(10, 4), depth=1), draw(10, 1, seed=1)
    d = Dynamics(kernel, y)
    small = 1e-4 * d.largest_rate
    flow = d.change(kernel, 1000, rate=small)
    torch.testing.assert_close(flow, d.change(kernel, 1000, rate=small, discrete=True), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(d.change(kernel, 1e9, rate=1.0), y)
    torch.testing.assert_close(d.coefficients(1e12, rate=1.0), solve(kernel, y), rtol=1e-5, atol=1e-6)


def test_directions_without_curvature_take_their_limit() -> None:
    d = Dynamics(torch.zeros(2, 2), torch.tensor([[1.0], [2.0]]))
    torch.testing.assert_close(d.coefficients(6, rate=0.5), torch.tensor([[1.5], [3.0]]).double())


def test_a_linearised_network_trains_as_its_kernel_says() -> None:
    """Gradient descent on the tangent of an MLP, and the closed form, after 25 steps."""
    net = MLP(4, 1, width=6, depth=1).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    x, y = draw(8, 4), draw(8, 1, seed=9)
    linear = Linearised(net)
    d = Dynamics(empirical_ntk(net, x), y - net(x).detach())
    rate = 0.5 * d.largest_rate
    optimizer = torch.optim.SGD(linear.parameters(), lr=rate)
    for _ in range(25):
        optimizer.zero_grad()
        ((linear(x) - y).square().sum() / 16).backward()
        optimizer.step()
    test = draw(3, 4, seed=5)
    closed = net(test).detach() + d.change(empirical_ntk(net, test, x), 25, rate=rate, discrete=True)
    torch.testing.assert_close(linear(test).detach(), closed)


def test_drift_distance_and_alignment() -> None:
    a, b = draw(9, 20), draw(9, 20, seed=1)
    k, s = a @ a.T, b @ b.T
    cosine = float((k * s).sum() / (k.norm() * s.norm()))
    assert kernel_distance(k, s) == pytest.approx(1 - cosine)
    assert kernel_distance(5 * k, k) == pytest.approx(0, abs=1e-12)
    assert relative_drift(5 * k, k) == pytest.approx(4)
    y = draw(9, 2, seed=2)
    assert alignment(k, y) == pytest.approx(float(cka(a, y)), abs=1e-9)
    assert alignment(y @ y.T, y, centred=False) == pytest.approx(1)


def test_the_bound_by_hand_and_its_growth_with_label_noise() -> None:
    x = draw(40, 6)
    x = x / x.norm(dim=1, keepdim=True)
    kernel = ntk(x, depth=1, frozen=(1,)) / 2
    cosine = (x @ x.T).clamp(-1, 1)
    closed = cosine * (math.pi - cosine.fill_diagonal_(1.0).arccos()) / (2 * math.pi)
    torch.testing.assert_close(kernel, closed)
    y = x[:, 0].sign()
    by_hand = math.sqrt(2 * float(y @ torch.linalg.solve(kernel, y)) / 40)
    assert complexity_bound(kernel, y) == pytest.approx(by_hand, rel=1e-5)
    flipped = y * torch.where(torch.arange(40) % 4 == 0, -1.0, 1.0)
    assert complexity_bound(kernel, flipped) > complexity_bound(kernel, y)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets \(3, C\), not \(2,\)"):
        solve(torch.eye(3), torch.ones(2))
    with pytest.raises(ValueError, match="must be square"):
        solve(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        solve(torch.eye(2), torch.ones(2), ridge=-1.0)
    with pytest.raises(ValueError, match="not positive definite"):
        solve(-torch.eye(2), torch.ones(2))
    with pytest.raises(ValueError, match="diverge"):
        Dynamics(torch.eye(2), torch.ones(2)).change(torch.eye(2), 3, rate=9.0, discrete=True)
    with pytest.raises(ValueError, match="a whole number of steps"):
        Dynamics(torch.eye(2), torch.ones(2)).change(torch.eye(2), 0.5, rate=1.0, discrete=True)
