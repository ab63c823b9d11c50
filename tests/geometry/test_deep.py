"""Right where others break: deep collapse at an offset, ill-conditioned means, very wide layers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import reference
from nucleate.geometry.collapse import Moments, Projection, collapse, from_moments
from nucleate.geometry.means import span


def deep(sigma: float, *, c: int = 10, d: int = 512, n: int = 50, offset: float = 5.0):
    g = torch.Generator().manual_seed(0)
    means = torch.randn(c, d, generator=g, dtype=torch.float64) / d**0.5 + offset
    y = torch.arange(c * n) % c
    return (means[y] + sigma * torch.randn(c * n, d, generator=g, dtype=torch.float64)).float(), y


def stretched(spread: float, *, c: int = 10, d: int = 64, n: int = 100):
    """Class means whose singular values run over `spread`."""
    g = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(c, c - 1, generator=g, dtype=torch.float64) - 0).Q
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(d, c - 1, generator=g, dtype=torch.float64)).Q
    means = (left * torch.logspace(0, -torch.tensor(spread).log10().item(), c - 1, dtype=torch.float64)) @ right.T
    y = torch.arange(c * n) % c
    return (means[y] + 1e-3 * torch.randn(c * n, d, generator=g, dtype=torch.float64)).float(), y


@pytest.mark.parametrize("sigma", [1e-3, 1e-4, 1e-5])
def test_spread_far_below_the_offset(sigma):
    x, y = deep(sigma)
    want = reference.nc1(x.double().numpy(), y.numpy())
    assert collapse(x, y).nc1 == pytest.approx(want, rel=1e-5)
    for precise in (True, False):
        m = Moments(10, 512)
        m.update(x, y)
        p = Projection(m, precise=precise)
        p.update(x, y)
        assert from_moments(m, projection=p).nc1 == pytest.approx(want, rel=1e-5 if p.certified else 1e-3)
    one = Moments(10, 512, second_moment=True)
    one.update(x, y)
    assert from_moments(one).nc1 == pytest.approx(want, rel=1e-3 if sigma > 2e-5 else 0.1)


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_class_variances_of_one_pass(offset):
    # Trap 13: float32 E[x^2] - E[x]^2 gave 3.56e-5 for 5.16e-9.
    x, y = deep(1e-4, offset=offset)
    m = Moments(10, 512)
    m.update(x, y)
    h = x.double()
    exact = torch.stack([(h[y == k] - h[y == k].mean(0)).square().sum(1).mean() for k in range(10)])
    torch.testing.assert_close(m.within, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spread", [1e2, 1e3, 1e4, 1e6])
def test_means_with_very_different_singular_values(spread):
    # Trap 21: a float32 pinv was off by 99.6 %, a tolerance on the Gram matrix by two orders of magnitude.
    x, y = stretched(spread)
    got = collapse(x, y)
    want = reference.nc1(x.double().numpy(), y.numpy())
    assert got.nc1 == pytest.approx(want, rel=1e-4 if spread <= 1e3 else 1e-3)
    assert got.rank == 9 == span(torch.stack([x[y == k].double().mean(0) for k in range(10)])).rank
    textbook = x.double().numpy()
    assert got.nc1 == pytest.approx(reference.collapse(textbook, y.numpy(), *_classifier())["nc1"], rel=1e-3)


def _classifier():
    g = torch.Generator().manual_seed(2)
    return torch.randn(10, 64, generator=g).double().numpy(), torch.zeros(10).double().numpy()


def test_large_products_in_float32_are_certified_or_taken_again():
    g = torch.Generator().manual_seed(0)
    c, d, n = 80, 120, 10
    y = torch.arange(c * n) % c
    means = torch.randn(c, d, generator=g)
    x = means[y] + 0.1 * torch.randn(c * n, d, generator=g)
    m = Moments(c, d)
    m.update(x, y)
    fast = Projection(m, weight=means)
    assert not fast.precise
    fast.update(x, y)
    assert fast.certified
    assert float(fast.square.sum() / fast.count.sum()) == pytest.approx(reference.nc1(x.numpy(), y.numpy()), rel=1e-6)
    # A huge spread wholly across the means' span, a tiny one inside it: rounding of the products would be all of NC1.
    turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    flat = torch.zeros(c, d, dtype=torch.float64)
    flat[:, :c] = means[:, :c]
    noise = 1e4 * torch.randn(c * n, d, generator=g, dtype=torch.float64)
    noise[:, :c] *= 1e-8
    noise -= torch.stack([noise[y == k].mean(0) for k in range(c)])[y]
    hard = ((flat[y] + noise) @ turn).float()
    m = Moments(c, d)
    m.update(hard, y)
    p = Projection(m, weight=means)
    p.update(hard, y)
    assert not p.certified
    assert "1e-4" in from_moments(m, weight=means, projection=p).reasons["nc1"]
    assert collapse(hard, y, weight=means).nc1 == pytest.approx(reference.nc1(hard.numpy(), y.numpy()), rel=1e-6)


def test_exact_collapse_is_zero_not_negative():
    # Trap 10: negative NC1 was reported elsewhere.
    for offset in (0.0, 5.0, 1e3):
        x, y = deep(0.0, offset=offset, d=32, n=5)
        got = collapse(x, y)
        assert 0 <= got.nc1 < 1e-12 and 0 <= got.nc1_within < 1e-12 * max(1.0, offset) ** 2
        one = Moments(10, 32, second_moment=True)
        one.update(x, y)
        streamed = from_moments(one)
        assert (
            streamed.nc1 >= 0 and "resolves" in streamed.reasons["nc1"] and "resolves" in streamed.reasons["nc1_within"]
        )


PEAK = """
    import re
    import torch
    from nucleate.geometry.collapse import collapse
    from nucleate.machine import matmul

    def resident(field):
        return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

    torch.set_num_threads(1)
    if not {fast}:
        matmul.medium_keeps_float32 = lambda device: False
    c, d, n = {c}, {d}, {n}
    collapse(torch.randn(4 * c, 8), torch.arange(4 * c) % c, weight=torch.randn(c, 8))  # loads what torch loads lazily
    x = torch.empty(n, d).normal_(generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % c
    w = torch.randn(c, d)
    open("/proc/self/clear_refs", "w").write("5")  # The peak starts anew from here.
    before = resident("VmRSS")
    value = collapse(x, y, weight=w).nc1
    print(value, resident("VmHWM") - before)
"""

has_peak = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no resettable peak of memory here")


def peak(c: int, d: int, n: int, *, fast: bool) -> tuple[float, float]:
    """NC1, and MiB that it took beyond the features, in a process of its own: a peak is inherited from the parent."""
    code = textwrap.dedent(PEAK.format(c=c, d=d, n=n, fast=fast))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(out[0]), float(out[1])


@has_peak
@pytest.mark.slow
def test_a_layer_of_65536_units_is_exact_in_bounded_memory():
    # Trap 12: others skip such layers, or store C x d x d.
    (value, mib), (by_default, more) = (peak(10, 65_536, 4000, fast=fast) for fast in (True, False))
    x = torch.empty(4000, 65_536).normal_(generator=torch.Generator().manual_seed(0)).numpy()
    assert max(mib, more) < 300
    want = reference.nc1(x, (torch.arange(4000) % 10).numpy())
    assert value == pytest.approx(want, rel=1e-6) and by_default == pytest.approx(want, rel=1e-6)


@has_peak
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "default"])
def test_no_buffer_of_points_times_d_squared_or_classes_squared_times_d(fast):
    # Traps 7 and 14: n x d x d and C x C x d buffers; here the features are 10 MiB, C x C x d would be 8 GiB.
    value, mib = peak(1000, 1024, 2600, fast=fast)
    assert mib < 300 and value > 0
