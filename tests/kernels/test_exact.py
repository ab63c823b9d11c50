"""Exact kernels against their invariants, a closed form, and networks that were really drawn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from nucleate.kernels import exact
from nucleate.kernels.empirical import empirical_ntk
from nucleate.kernels.exact import nngp, ntk


def points(n: int = 12, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network(nn.Module):
    """The NTK parametrisation of the module's docstring, at a finite width."""

    def __init__(self, inputs: int, width: int, depth: int, bias: float, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        sizes = [inputs, *[width] * depth, 1]
        self.bias = bias
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for a, b in itertools.pairwise(sizes):
            self.weights.append(nn.Parameter(torch.randn(b, a, generator=draw, dtype=torch.float64)))
            self.biases.append(nn.Parameter(torch.randn(b, generator=draw, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = x if i == 0 else math.sqrt(2 / x.shape[1]) * x.relu()
            x = h @ w.T + self.bias * b
        return x


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_invariants_on_the_diagonal(depth: int) -> None:
    x = points()
    square = x.square().sum(1)
    torch.testing.assert_close(nngp(x, depth=depth).diagonal(), square, rtol=1e-12, atol=0)
    torch.testing.assert_close(ntk(x, depth=depth).diagonal(), (depth + 1) * square, rtol=1e-12, atol=0)
    for k in range(depth + 1):
        frozen = ntk(x, depth=depth, frozen=range(k)).diagonal()
        torch.testing.assert_close(frozen, (depth + 1 - k) * square, rtol=1e-12, atol=0)


@pytest.mark.parametrize("depth", [1, 3])
def test_symmetric_positive_and_the_same_in_blocks(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(40)
    kernel = ntk(x, depth=depth, bias=0.3)
    assert torch.equal(kernel, kernel.T)
    assert float(torch.linalg.eigvalsh(kernel)[0]) > -1e-10
    # Off the diagonal, two different points never meet the rule for one and the same point.
    other = ~torch.eye(40, dtype=torch.bool)
    torch.testing.assert_close(kernel[other], ntk(x, x.clone(), depth=depth, bias=0.3)[other], rtol=1e-12, atol=0)
    monkeypatch.setattr(exact, "BLOCK", 7 * 40)
    torch.testing.assert_close(ntk(x, depth=depth, bias=0.3), kernel, rtol=1e-13, atol=1e-13)


def test_depth_zero_is_linear_and_layers_add_up() -> None:
    x, z = points(6), points(4, seed=1)
    torch.testing.assert_close(ntk(x, z, depth=0, bias=0.5), x @ z.T + 0.25)
    parts = [ntk(x, z, depth=2, bias=0.5, frozen={0, 1, 2} - {i}) for i in range(3)]
    torch.testing.assert_close(parts[0] + parts[1] + parts[2], ntk(x, z, depth=2, bias=0.5))
    torch.testing.assert_close(parts[2], nngp(x, z, depth=2, bias=0.5))


def test_points_at_zero_and_nearly_equal_ones_stay_finite() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1e-9], [1.0, 0.0]], dtype=torch.float64)
    kernel = ntk(x, depth=3)
    assert torch.isfinite(kernel).all()
    assert torch.equal(kernel[0], torch.zeros(3, dtype=torch.float64))
    assert float(kernel[1, 2]) == pytest.approx(4.0, rel=1e-7)


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_the_output_covariance_of_drawn_networks(bias: float) -> None:
    """Monte Carlo over networks: the NNGP within four standard errors, at depth 2."""
    x = points(3)
    draws = torch.stack([Network(5, 200, 2, bias, seed)(x)[:, 0].detach() for seed in range(1500)])
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(0) / math.sqrt(len(draws))
    assert bool(((products.mean(0) - nngp(x, depth=2, bias=bias)).abs() < 4 * error).all())


@pytest.mark.parametrize(("depth", "bias", "frozen"), [(1, 0.0, ()), (2, 0.6, ()), (2, 0.6, (0, 1)), (1, 0.6, (1,))])
def test_wide_networks_approach_it_like_the_root_of_the_width(depth: int, bias: float, frozen: tuple[int, ...]) -> None:
    x = points(8)
    x = x / x.norm(dim=1, keepdim=True)
    wanted = ntk(x, depth=depth, bias=bias, frozen=frozen)
    gaps = []
    widths = (32, 128, 512)
    for width in widths:
        own = []
        for seed in range(6):
            net = Network(5, width, depth, bias, seed)
            for i in frozen:
                net.weights[i].requires_grad_(False)
                net.biases[i].requires_grad_(False)
            own.append(float((empirical_ntk(net, x) - wanted).norm() / wanted.norm()))
        gaps.append(sum(own) / len(own))
    slope = (math.log(gaps[-1]) - math.log(gaps[0])) / (math.log(widths[-1]) - math.log(widths[0]))
    assert -0.75 < slope < -0.3
    assert gaps[-1] < 0.15


def test_one_hidden_layer_in_closed_form() -> None:
    """For f = sqrt(2/m) v relu(W x): 2/m h h' + (x x') 2/m d diag(v^2) d', no autodiff."""
    x = points(7)
    net = Network(5, 30, 1, 0.0, 0)
    w, v = net.weights[0].detach(), net.weights[1].detach()
    pre = x @ w.T
    h, d = pre.relu(), (pre > 0).double()
    closed = 2 / 30 * (h @ h.T + (x @ x.T) * ((d * v.square()) @ d.T))
    for p in net.biases:
        p.requires_grad_(False)
    torch.testing.assert_close(empirical_ntk(net, x), closed)


def test_wrong_arguments_are_refused() -> None:
    for kernel in (ntk, nngp):
        with pytest.raises(ValueError, match=r"x must be points \(n, ...\), not of shape \(5,\)"):
            kernel(torch.ones(5), depth=1)
        with pytest.raises(ValueError, match=r"x2 holds NaN or infinity in 1 of 2 points \(first: 1\)"):
            kernel(torch.ones(3, 2), torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), depth=1)
    with pytest.raises(ValueError, match="depth must be at least 0, not -1"):
        ntk(points(), depth=-1)
    with pytest.raises(ValueError, match=r"weight layers 0 \.\. 1, not \[2\]"):
        ntk(points(), depth=1, frozen=(2,))
    with pytest.raises(ValueError, match="of 5 and of 4 values"):
        nngp(points(), points(d=4), depth=1)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        nngp(points(), depth=1, bias=-1.0)
