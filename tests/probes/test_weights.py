"""Distribution of weights against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nucleate.probes.weights import gini, initial_scales, near_zero_share, weights_gini


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


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no initial scale for 0"):
        near_zero_share(nn.Sequential(nn.Linear(2, 2)), {})
    with pytest.raises(ValueError, match="no weight matrix"):
        near_zero_share(nn.ReLU(), {})
    with pytest.raises(ValueError, match="not zero"):
        gini(torch.zeros(3))
