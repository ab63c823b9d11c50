"""Laws that hold for every set of features: invariances, merging, batching, averaging."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from nucleate.geometry.collapse import Moments, Projection, collapse, from_moments
from nucleate.geometry.means import cdnv_grid, pair_distances, span

LAW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def clouds(draw, *, unequal: bool = True):
    """Float64 features of C classes with at least two points each, and a classifier."""
    c, d = draw(st.integers(2, 7)), draw(st.integers(1, 9))
    counts = draw(st.lists(st.integers(2, 6), min_size=c, max_size=c)) if unequal else [4] * c
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    y = torch.repeat_interleave(torch.arange(c), torch.tensor(counts))
    x = torch.randn(c, d, generator=g, dtype=torch.float64)[y]
    x = x + draw(st.sampled_from([1e-3, 0.3, 3.0])) * torch.randn(len(y), d, generator=g, dtype=torch.float64)
    return (
        x,
        y,
        torch.randn(c, d, generator=g, dtype=torch.float64),
        torch.randn(c, generator=g, dtype=torch.float64),
        g,
    )


def same(a, b, *, skip: tuple[str, ...] = (), rel: float = 1e-6) -> None:
    for name, value in a.asdict().items():
        if name not in skip:
            assert getattr(b, name) == pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True), name


SHIFTED = (
    "bias_collapse",
    "nc4",
    "boundary_mean",
    "boundary_spread",
    "nc1_within",
    "nc1_between",
    "mean_norm",
    "nc3_unc",
)


@LAW
@given(clouds(), st.floats(-5, 5), st.sampled_from([0.01, 3.0]))
def test_shift_rotation_and_scale_change_nothing_of_the_shape(cloud, shift, scale):
    x, y, w, b, g = cloud
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=g, dtype=torch.float64)).Q
    moved = collapse(scale * (x @ turn) + shift, y, weight=w @ turn, bias=b)
    same(collapse(x, y, weight=w, bias=b), moved, skip=SHIFTED, rel=1e-5)
    assert moved.nc1_within == pytest.approx(scale**2 * collapse(x, y).nc1_within, rel=1e-6)


@LAW
@given(clouds(), st.floats(-5, 5))
def test_the_network_shifted_along_with_its_features_reads_the_same(cloud, shift):
    x, y, w, b, _ = cloud
    same(collapse(x, y, weight=w, bias=b), collapse(x + shift, y, weight=w, bias=b - shift * w.sum(1)), rel=1e-5)


@LAW
@given(clouds(), st.randoms(use_true_random=False))
def test_class_names_do_not_matter(cloud, random):
    x, y, w, b, _ = cloud
    order = list(range(len(w)))
    random.shuffle(order)
    perm = torch.tensor(order)
    w2, b2 = torch.empty_like(w), torch.empty_like(b)
    w2[perm], b2[perm] = w, b
    same(collapse(x, y, weight=w, bias=b), collapse(x, perm[y], weight=w2, bias=b2))


@LAW
@given(clouds(), st.randoms(use_true_random=False), st.integers(1, 7))
def test_batches_shards_and_their_order_do_not_matter(cloud, random, size):
    x, y, w, b, _ = cloud
    order = list(range(len(y)))
    random.shuffle(order)
    parts = torch.tensor(order).split(size)
    whole = Moments(len(w), x.shape[1], second_moment=True)
    whole.update(x, y)
    shards = []
    for part in parts:
        shards.append(Moments(len(w), x.shape[1], second_moment=True))
        shards[-1].update(x[part], y[part])
    merged = shards[0]
    for shard in shards[1:]:
        merged.merge(shard)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    loaded = Moments(len(w), x.shape[1], second_moment=True)
    loaded.load_state_dict(merged.state_dict())
    first, second = (Projection(loaded, weight=w, bias=b) for _ in range(2))
    for i, part in enumerate(parts):
        (first, second)[i % 2].update(x[part], y[part])
    first.merge(second)
    same(collapse(x, y, weight=w, bias=b), from_moments(loaded, weight=w, bias=b, projection=first), rel=1e-7)


@LAW
@given(clouds())
def test_projected_dense_and_svd_forms_agree_and_are_never_negative(cloud):
    x, y, w, _, _ = cloud
    got = collapse(x, y)
    m = Moments(len(w), x.shape[1], second_moment=True)
    m.update(x, y)
    assert got.nc1 >= 0
    assert from_moments(m).nc1 == pytest.approx(got.nc1, rel=1e-6, abs=1e-12)
    s = span(m.means)
    r = x - m.means[y]
    dense = torch.linalg.pinv(s.centred.T @ s.centred / len(w), rtol=1e-13)
    if s.condition < 1e3:
        assert torch.trace(r.T @ r / len(y) @ dense).item() / len(w) == pytest.approx(got.nc1, rel=1e-6)


@LAW
@given(clouds())
def test_parts_average_to_the_whole(cloud):
    x, y, _, _, _ = cloud
    got = collapse(x, y)
    share = got.counts.double() / len(y)
    assert float((share * got.nc1_per_class).sum()) == pytest.approx(got.nc1, rel=1e-9)
    pairs = got.nc1_per_pair[~got.nc1_per_pair.isnan()]
    assert float(pairs.mean()) == pytest.approx(got.nc1_cdnv, rel=1e-9)
    assert torch.equal(got.nc1_per_pair.nan_to_num(), got.nc1_per_pair.T.nan_to_num())


@LAW
@given(clouds())
def test_ranges(cloud):
    x, y, w, b, _ = cloud
    got = collapse(x, y, weight=w, bias=b)
    for name, high in {
        "nc3": 4,
        "nc3_gram": 2,
        "nc3_cosine": 2,
        "nc3_subspace": 1,
        "nc4": 1,
        "ncc_accuracy": 1,
        "nc2_etf": math.sqrt(2),
        "nc1_vci": 1,
    }.items():
        value = getattr(got, name)
        assert math.isnan(value) or -1e-9 <= value <= high + 1e-9, name


@LAW
@given(clouds(unequal=False))
def test_vci_is_invariant_to_invertible_linear_maps(cloud):
    x, y, _, _, g = cloud
    d = x.shape[1]
    stretch = torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, generator=g, dtype=torch.float64)
    if torch.linalg.cond(stretch) < 100:
        assert collapse(x @ stretch, y).nc1_vci == pytest.approx(
            collapse(x, y).nc1_vci, rel=1e-5, abs=1e-7, nan_ok=True
        )


@LAW
@given(clouds())
def test_pair_distances_are_exact_differences(cloud):
    x = cloud[0]
    x = torch.cat([x, x[:2] + 1e-9])
    exact = (x[:, None] - x[None]).square().sum(2)
    torch.testing.assert_close(pair_distances(x), exact, rtol=1e-7, atol=0)
    v = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    i, j = 0, len(x) - 3
    if i != j:
        assert cdnv_grid(pair_distances(x), v)[i, j].item() == pytest.approx(
            ((v[i] + v[j]) / (2 * exact[i, j])).item(), rel=1e-6
        )


def test_shards_of_different_things_do_not_merge():
    m = Moments(3, 4)
    with pytest.raises(ValueError, match="cannot merge moments of 2 classes"):
        m.merge(Moments(2, 4))
    with pytest.raises(ValueError, match="second moment"):
        m.merge(Moments(3, 4, second_moment=True))
    with pytest.raises(ValueError, match="expected the sums"):
        m.load_state_dict({"count": torch.zeros(3)})
    with pytest.raises(ValueError, match="sum must be"):
        m.load_state_dict({**m.state_dict(), "sum": torch.zeros(3, 5)})
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    m.update(x, y)
    other = Moments(3, 4)
    other.update(x[:9], y[:9])
    with pytest.raises(ValueError, match="different means"):
        Projection(m).merge(Projection(other))
    p = Projection(m)
    p.update(x[:9], y[:9])
    with pytest.raises(ValueError, match="class counts differ"):
        from_moments(m, projection=p)
    with pytest.raises(ValueError, match="other means"):
        from_moments(m, projection=p, means=m.means + 1)
    with pytest.raises(ValueError, match="another convention"):
        from_moments(m, projection=p, convention="zhu2021")
    headed = Projection(m, weight=torch.ones(3, 4))
    headed.update(x, y)
    with pytest.raises(ValueError, match="another classifier"):
        from_moments(m, projection=headed, weight=torch.zeros(3, 4))


def test_state_dict_is_a_copy():
    m = Moments(2, 2)
    state = m.state_dict()
    m.update(torch.ones(2, 2), torch.tensor([0, 1]))
    assert float(state["count"].sum()) == 0
    m.load_state_dict(state)
    m.update(torch.ones(2, 2), torch.tensor([0, 1]))
    assert float(state["count"].sum()) == 0


def test_update_reads_nothing_back_and_does_not_depend_on_the_number_of_classes():
    # Trap 6. On the meta device any read of a value raises.
    m = Moments(1000, 8, device="meta", second_moment=True)
    m.update(torch.empty(64, 8, device="meta"), torch.empty(64, dtype=torch.int64, device="meta"))
    flops = []
    for c in (10, 10_000):
        counter = FlopCounterMode(display=False)
        n = Moments(c, 8)
        with counter:
            n.update(torch.randn(64, 8), torch.arange(64) % 10)
        flops.append(counter.get_total_flops())
    assert flops == [0, 0]  # no product with a one-hot matrix
