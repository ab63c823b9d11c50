"""Distribution of weights against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nucleate.geometry.dimension import stable_rank
from nucleate.probes.weights import gini, initial_scales, near_zero_share, weight_spectra, weights_gini


def normal_net(seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(400, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 200))
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(p for p in net.parameters() if p.ndim == 2):
        p.data.normal_(0, 0.01 * 10**i, generator=generator)
    return net


def test_normal_weights_have_the_shares_of_the_normal_law() -> None:
    net = normal_net()
    scales = initial_scales(net)
    assert near_zero_share(net, scales) == pytest.approx(math.erf(0.1 / math.sqrt(2)), abs=0.002)
    assert weights_gini(net, scales) == pytest.approx(math.sqrt(2) - 1, abs=0.002)


def test_uniform_sizes_have_a_gini_of_a_third() -> None:
    assert gini(torch.linspace(0, 1, 100_001)) == pytest.approx(1 / 3, abs=1e-4)
    assert gini(torch.full((7,), -3.0)) == pytest.approx(0, abs=1e-12)


def test_both_rise_when_small_weights_are_zeroed() -> None:
    net = normal_net()
    scales = initial_scales(net)
    before = near_zero_share(net, scales), weights_gini(net, scales)
    for name, p in net.named_parameters():
        if p.ndim == 2:
            p.data[p.abs() < scales[name]] = 0
    after = near_zero_share(net, scales), weights_gini(net, scales)
    assert after[0] == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.005)
    assert after[1] > before[1] + 0.2


def test_spectra_of_known_singular_values_and_of_kernels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 2), nn.Linear(7, 4))
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q for n in (5, 12))
    values = torch.tensor([9.0, 4.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    net[0].weight.data = ((u * values) @ v[:5]).reshape(5, 3, 2, 2).float()
    found = weight_spectra(net)
    assert list(found) == ["0.weight", "1.weight"]
    conv, linear = found["0.weight"], found["1.weight"]
    torch.testing.assert_close(conv.singular_values, values, atol=1e-6, rtol=1e-6)
    assert conv.shape == (5, 12) and conv.norm == pytest.approx(9)
    assert conv.stable_rank == pytest.approx((81 + 16 + 1 + 0.25) / 81)
    assert linear.stable_rank == pytest.approx(stable_rank(net[1].weight.detach()))


def test_normal_weights_fill_the_marchenko_pastur_band() -> None:
    found = weight_spectra(normal_net())["3.weight"]
    s = found.singular_values / 0.1
    assert float(s[0]) == pytest.approx(math.sqrt(200) + math.sqrt(300), rel=0.03)
    assert float(s[-1]) == pytest.approx(math.sqrt(300) - math.sqrt(200), rel=0.1)
    # |W|_F^2 = m n v against (sqrt m + sqrt n)^2 v.
    assert found.stable_rank == pytest.approx(200 * 300 / (math.sqrt(200) + math.sqrt(300)) ** 2, rel=0.06)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        weight_spectra(nn.Linear(2, 2).apply(lambda m: m.weight.data.fill_(math.nan)))
    with pytest.raises(ValueError, match="no weight matrix"):
        weight_spectra(nn.ReLU())
    assert math.isnan(weight_spectra(nn.Linear(2, 2).apply(lambda m: m.weight.data.zero_()))["weight"].stable_rank)
    with pytest.raises(ValueError, match="no initial scale for 0"):
        near_zero_share(nn.Sequential(nn.Linear(2, 2)), {})
    with pytest.raises(ValueError, match="no weight matrix"):
        near_zero_share(nn.ReLU(), {})
    with pytest.raises(ValueError, match="not zero"):
        gini(torch.zeros(3))
