"""Attacks against linear networks, where the answer is known, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nucleate.probes.calibration import expected_calibration_error
from nucleate.probes.robustness import correct, fgsm, pgd, smallest_perturbation

WIDE = (-100.0, 100.0)


def linear(seed: int = 0) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A two-class linear net, points, its own labels, and their exact L-infinity distance to the boundary."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(6, 2).double()
    with torch.no_grad():
        net.weight.normal_(generator=generator)
        net.bias.normal_(generator=generator)
        x = torch.randn(40, 6, dtype=torch.float64, generator=generator)
        z = net(x)
    gap = (z[:, 0] - z[:, 1]).abs()
    return net, x, z.argmax(1), gap / (net.weight[0] - net.weight[1]).abs().sum().detach()


def test_the_smallest_perturbation_of_a_linear_net_is_its_distance() -> None:
    net, x, y, distance = linear()
    found = smallest_perturbation(net, x, y, largest=4.0, rounds=16, bounds=WIDE)
    torch.testing.assert_close(found, distance.clamp_max(4.0), rtol=0, atol=4.0 / 2**15)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_attacks_succeed_exactly_beyond_the_distance(factor: float) -> None:
    net, x, y, distance = linear()
    for i in range(10):
        radius = factor * float(distance[i])
        for attacked in (
            fgsm(net, x[i : i + 1], y[i : i + 1], radius, bounds=WIDE),
            pgd(net, x[i : i + 1], y[i : i + 1], radius, bounds=WIDE, generator=torch.Generator().manual_seed(i)),
        ):
            assert bool(correct(net, attacked, y[i : i + 1])) == (factor < 1)


def test_attacks_stay_in_the_ball_and_in_the_bounds() -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 6, generator=generator)
    y = torch.randint(3, (30,), generator=generator)
    for attacked in (fgsm(net, x, y, 0.2), pgd(net, x, y, 0.2, generator=generator)):
        assert float((attacked - x).abs().max()) <= 0.2 + 1e-6
        assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1
    assert correct(net, pgd(net, x, y, 0.2), y).sum() <= correct(net, fgsm(net, x, y, 0.0), y).sum()


def test_a_wrong_point_needs_no_perturbation() -> None:
    net, x, y, _ = linear()
    assert float(smallest_perturbation(net, x, 1 - y, bounds=WIDE).max()) == 0


def test_nothing_is_left_behind() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    net[1].eval()
    net[0].weight.requires_grad_(False)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.random.get_rng_state()
    x, y = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(8, dtype=torch.long)
    fgsm(net, x, y, 0.1)
    pgd(net, x, y, 0.1, generator=torch.Generator().manual_seed(0))
    smallest_perturbation(net, x, y, rounds=2)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net] == [True, False, True, True]
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


def test_bad_radii_and_steps_are_refused() -> None:
    net, x, y, _ = linear()
    with pytest.raises(ValueError, match="epsilon"):
        fgsm(net, x, y, -0.1)
    with pytest.raises(ValueError, match="at least one step"):
        pgd(net, x, y, 0.1, steps=0)


def test_a_calibrated_net_has_no_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(200_000, generator=generator, dtype=torch.float64)
    labels = (torch.rand(200_000, generator=generator, dtype=torch.float64) >= confidence).long()
    p = torch.stack([confidence, 1 - confidence], 1)
    assert expected_calibration_error(p, labels) < 0.005
    assert expected_calibration_error(p, torch.ones_like(labels)) == pytest.approx(0.75, abs=0.005)
    with pytest.raises(ValueError, match="labels"):
        expected_calibration_error(p, labels[:3])
