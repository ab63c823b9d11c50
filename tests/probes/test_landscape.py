"""The surface around a network against closed forms and dense Hessians."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from nucleate.models.mlp import MLP
from nucleate.probes.landscape import (
    Hessian,
    barrier,
    distance,
    frobenius_norms,
    margins,
    path_norm,
    perturbation_sigma,
    spectral_norms,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def small() -> tuple[nn.Module, Tensor, Tensor]:
    net = MLP(4, 3, width=5, depth=2).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    return net, draw(20, 4, seed=50), torch.arange(20) % 3


def dense(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    names = [k for k, _ in net.named_parameters()]
    values = tuple(p.detach() for p in net.parameters())

    def loss(*parts: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, dict(zip(names, parts, strict=True)), (x,)), y)

    blocks = torch.autograd.functional.hessian(loss, values)
    sizes = [v.numel() for v in values]
    rows = [
        torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], 1)
        for row, n in zip(blocks, sizes, strict=True)
    ]
    return torch.cat(rows)


def test_the_spectrum_is_that_of_the_dense_hessian() -> None:
    x, y = draw(50, 20), draw(50, 1, seed=1)
    net = nn.Linear(20, 1, bias=False).double()
    values = torch.linalg.eigvalsh(2 * x.T @ x / 50)
    h = Hessian(net, x, y, loss=nn.MSELoss())
    places, weights = h.spectrum(probes=100, steps=20)
    torch.testing.assert_close(places.view(20, 100), values[:, None].expand(20, 100), rtol=1e-8, atol=1e-10)
    # A share of a chi-squared: mean 1 / 20, standard deviation about sqrt(2) / 20.
    assert float((weights.view(20, 100).sum(1) * 20 - 1).abs().max()) < 4 * math.sqrt(2 / 100)
    few, own = h.spectrum(probes=1, steps=5, seed=3)
    start = torch.randn(20, generator=Generator().manual_seed(3), dtype=torch.float64)
    start /= start.norm()
    for power in range(10):
        moment = start @ torch.linalg.matrix_power(2 * x.T @ x / 50, power) @ start
        assert float((own * few**power).sum()) == pytest.approx(float(moment), rel=1e-8)


def test_the_spectrum_of_surviving_weights_and_of_a_network() -> None:
    net, x, y = small()
    h = Hessian(net, x, y)
    places, weights = h.spectrum(probes=50, steps=40)
    assert float(weights.sum()) == pytest.approx(1.0)
    whole = dense(net, x, y)
    trace, second = float(whole.diagonal().sum()), float(whole.square().sum())
    assert float((weights * places).sum()) * h.size == pytest.approx(trace, abs=4 * math.sqrt(2 * second / 50))
    with pytest.raises(ValueError, match="at least 1"):
        h.spectrum(steps=0)
    net = nn.Linear(3, 1, bias=False).double()
    x = torch.eye(3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])
    masks = {"weight": torch.tensor([[1, 0, 1]])}
    kept = Hessian(net, x, torch.zeros(3, 1).double(), loss=nn.MSELoss(reduction="sum"), masks=masks)
    assert kept.spectrum(probes=1)[0].tolist() == pytest.approx([2.0, 18.0])


def test_least_squares_has_the_covariance_as_hessian() -> None:
    x, y = draw(50, 20), draw(50, 1, seed=1)
    net = nn.Linear(20, 1, bias=False).double()
    h = Hessian(net, x, y, loss=nn.MSELoss())
    values = torch.linalg.eigvalsh(2 * x.T @ x / 50).flip(0)
    torch.testing.assert_close(h.top(3, tolerance=1e-8), values[:3])
    assert h.largest() == pytest.approx(float(values[0]), rel=1e-3)
    assert h.trace(probes=400) == pytest.approx(float(values.sum()), rel=0.05)


def test_a_network_against_its_dense_hessian() -> None:
    net, x, y = small()
    net.train()
    h, wanted = Hessian(net, x, y), dense(net, x, y)
    assert net.training
    v = draw(h.size)
    torch.testing.assert_close(h.product(v), wanted @ v)
    values = torch.linalg.eigvalsh(wanted)
    assert h.largest(tolerance=1e-8) == pytest.approx(float(values[-1]), rel=1e-6)
    exact = float(wanted.trace())
    spread = math.sqrt(2 * float(wanted.square().sum() - wanted.diagonal().square().sum()) / 200)
    assert abs(h.trace(probes=200) - exact) < 4 * spread


def test_the_largest_eigenvalue_and_not_the_largest_size() -> None:
    """A Hessian whose most negative value outweighs the positive ones."""

    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(30, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.w.square()).sum()

    curvature = torch.linspace(-5, 2, 30, dtype=torch.float64)
    h = Hessian(Saddle(), curvature, torch.zeros(()), loss=lambda out, target: out)
    assert h.largest() == pytest.approx(4.0, rel=1e-3)
    assert h.trace() == pytest.approx(2 * float(curvature.sum()))


def test_masks_leave_the_surviving_block() -> None:
    net, x, y = small()
    masks = {"hidden.0.linear.weight": (draw(5, 4) > 0).to(torch.uint8)}
    net.hidden[0].linear.weight.data.mul_(masks["hidden.0.linear.weight"])
    kept = torch.cat([masks.get(k, torch.ones_like(p)).flatten().bool() for k, p in net.named_parameters()])
    block = dense(net, x, y)[kept][:, kept]
    h = Hessian(net, x, y, masks=masks)
    assert h.largest(tolerance=1e-8) == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-6)


def test_margins_scale_with_the_classifier() -> None:
    net, x, y = small()
    before = margins(net, x, y)
    wrong = net(x).argmax(1) != y
    assert torch.equal(before < 0, wrong) and wrong.any()
    net.classifier.weight.data.mul_(2)
    net.classifier.bias.data.mul_(2)
    torch.testing.assert_close(margins(net, x, y), 2 * before)


def test_norms_of_a_network_by_hand() -> None:
    net, _, _ = small()
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            p.data.zero_()
    a, b, c = (p.detach() for p in net.parameters() if p.ndim == 2)
    assert path_norm(net, (4,)) == pytest.approx(math.sqrt(float((c**2 @ b**2 @ a**2).sum())))
    names = [k for k, p in net.named_parameters() if p.ndim == 2]
    assert list(spectral_norms(net).values()) == pytest.approx([float(torch.linalg.svdvals(w)[0]) for w in (a, b, c)])
    assert frobenius_norms(net)[names[1]] == pytest.approx(float(b.norm()))
    before = path_norm(net, (4,))
    a.mul_(4)
    b.div_(4)
    assert path_norm(net, (4,)) == pytest.approx(before), "rescaling layers leaves it"
    masks = {names[0]: torch.zeros_like(a)}
    assert path_norm(net, (4,), masks=masks) == 0
    assert spectral_norms(net, masks=masks)[names[0]] == 0


def test_a_convolution_counts_as_its_matrix() -> None:
    conv = nn.Conv2d(2, 3, 3, bias=False).double()
    assert spectral_norms(conv)["weight"] == pytest.approx(
        float(torch.linalg.svdvals(conv.weight.detach().flatten(1))[0])
    )
    with pytest.raises(ValueError, match="fold it into its layer"):
        path_norm(nn.Sequential(conv, nn.BatchNorm2d(3)), (2, 8, 8))


def test_distance_counts_trainable_and_surviving_weights() -> None:
    net, _, _ = small()
    start = {k: p.detach().clone() for k, p in net.named_parameters()}
    net.hidden[0].linear.weight.data += 1
    assert distance(net, start) == pytest.approx(math.sqrt(20))
    mask = torch.zeros(5, 4, dtype=torch.uint8)
    mask[0] = 1
    assert distance(net, start, masks={"hidden.0.linear.weight": mask}) == pytest.approx(2)
    net.hidden[0].linear.weight.requires_grad_(False)
    assert distance(net, start) == 0


def test_the_noise_that_costs_a_tenth_of_the_points() -> None:
    """One weight w, points at 1 with margin w: accuracy P(w + sigma e > 0) = Phi(w / sigma) is 0.9 at w / 1.2816."""
    net = nn.Linear(1, 2, bias=False).double()
    net.weight.data.copy_(torch.tensor([[0.5], [0.0]]))
    net.weight.requires_grad_(True)
    mask = {"weight": torch.tensor([[1], [0]])}
    x, y = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    sigma = perturbation_sigma(net, x, y, draws=1000, rounds=10, largest=2.0, masks=mask)
    assert sigma == pytest.approx(0.5 / NormalDist().inv_cdf(0.9), rel=0.1)
    relative = perturbation_sigma(net, x, y, draws=1000, rounds=10, largest=2.0, masks=mask, relative=True)
    assert relative == pytest.approx(sigma / 0.5, rel=0.02)
    assert perturbation_sigma(net, x, y, largest=1e-3) == 1e-3


def test_a_barrier_leaves_the_model_as_it_was() -> None:
    net, x, y = small()
    other = MLP(4, 3, width=5, depth=2).double().state_dict()
    own = {k: v.clone() for k, v in net.state_dict().items()}

    def loss(m: nn.Module) -> float:
        return F.cross_entropy(m(x), y).item()

    rise, values = barrier(net, own, other, loss, points=7)
    assert all(torch.equal(v, own[k]) for k, v in net.state_dict().items())
    assert values[0] == pytest.approx(loss(net))
    net.load_state_dict({k: own[k] + (other[k] - own[k]) / 3 for k in own})
    assert values[2] == pytest.approx(loss(net))
    line = [values[0] + (values[-1] - values[0]) * i / 6 for i in range(7)]
    assert rise == pytest.approx(max(v - on for v, on in zip(values, line, strict=True)))
    assert barrier(net, own, own, loss)[0] == pytest.approx(0)


def test_wrong_arguments_are_refused() -> None:
    net, x, y = small()
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        Hessian(nn.Flatten(), x, y)
    with pytest.raises(ValueError, match="at least one probe"):
        Hessian(net, x, y).trace(probes=0)
    with pytest.raises(ValueError, match="drop must be in"):
        perturbation_sigma(net, x, y, drop=0.0)
    with pytest.raises(ValueError, match="at least three points"):
        barrier(net, {}, {}, lambda m: 0.0, points=2)
    with pytest.raises(ValueError, match="do not belong to this model"):
        barrier(net, {}, {}, lambda m: 0.0)
