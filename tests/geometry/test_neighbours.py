from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nucleate.geometry import _codes, _search
from nucleate.geometry.neighbours import neighbour_search, neighbours

PREFILTERS = ["auto", *_codes.available(torch.device("cpu"))]


def truth(x: Tensor, k: int, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Every distance by differences in float64, self out by index, ties by index."""
    rows = (x if query is None else query).double()
    distances = torch.cdist(rows, x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if len(x) < 1000:
        distances = torch.stack([(x.double() - row).square().sum(1).sqrt() for row in rows])
    if query is None:
        distances.fill_diagonal_(math.inf)
    values, indices = distances.sort(dim=1, stable=True)
    return values[:, :k], indices[:, :k]


def assert_exact(x: Tensor, k: int, query: Tensor | None = None, prefilter: str = "auto") -> None:
    values, indices = truth(x, k, query)
    found = neighbour_search(x, k, query=query, prefilter=prefilter)
    torch.testing.assert_close(found.distances, values, rtol=1e-12, atol=0)
    different = found.indices != indices
    # A sum of squares in another order may swap neighbours that are equally far to the last bits.
    own = (x.double()[found.indices] - (x if query is None else query).double()[:, None]).norm(dim=2)
    assert torch.allclose(own[different], values[different], rtol=1e-13, atol=0)


def clusters(n: int, d: int, spread: float, offset: float = 5.0, classes: int = 10, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, d, generator=g)
    return (offset + means[torch.arange(n) % classes] + spread * torch.randn(n, d, generator=g)).float()


def recall(found: Tensor, right: Tensor) -> float:
    return float((found[:, :, None] == right[:, None]).any(2).double().mean())


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_recall_is_one_under_collapse_where_a_flat_float32_index_finds_little(spread):
    x = clusters(2000, 512, spread)
    right = truth(x, 5)[1]
    found = neighbour_search(x, 5)
    assert recall(found.indices, right) == 1.0
    assert bool(found.certified.all())
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed: nothing to compare with")
    index = faiss.IndexFlatL2(512)
    index.add(x.numpy())
    flat = torch.from_numpy(index.search(x.numpy(), 6)[1])
    without_self = torch.stack([row[row != i][:5] for i, row in enumerate(flat)])
    assert recall(without_self, right) < {1e-2: 0.6, 1e-3: 0.05, 1e-4: 0.05}[spread]


@pytest.mark.parametrize("prefilter", PREFILTERS)
@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-3])
def test_every_prefilter_gives_the_same_exact_answer(prefilter, spread):
    assert_exact(clusters(700, 96, spread), 5, prefilter=prefilter)


@pytest.mark.parametrize("prefilter", PREFILTERS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_few_dimensions(prefilter, dim):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        assert_exact(torch.randint(-9, 10, (22, dim), generator=g).to(torch.float16), 3, prefilter=prefilter)


@pytest.mark.parametrize("prefilter", PREFILTERS)
@pytest.mark.parametrize("wrong", [-(2**30), 0])
def test_products_that_keep_nobody_are_not_believed(prefilter, wrong, monkeypatch):
    true = _codes.Pair.product
    monkeypatch.setattr(_codes.Pair, "product", lambda self: true(self).fill_(wrong))
    assert_exact(clusters(60, 8, 1.0), 3, prefilter=prefilter)


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_blocks_beyond_one_give_the_same_answer(prefilter, monkeypatch):
    monkeypatch.setattr(_search, "BLOCK", 128)
    x = clusters(701, 40, 0.5)
    assert_exact(x, 7, prefilter=prefilter)
    assert_exact(x, 7, query=x[:150] + 0.25, prefilter=prefilter)


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_rows_with_too_many_candidates_are_settled_by_differences(prefilter, monkeypatch):
    monkeypatch.setattr(_search, "CANDIDATES", 6)
    x = clusters(300, 16, 1e-7, offset=100.0)
    found = neighbour_search(x, 5, prefilter=prefilter)
    assert not bool(found.certified.all())
    assert_exact(x, 5, prefilter=prefilter)


def test_a_broken_product_is_noticed_and_replaced(monkeypatch):
    right = _codes.Pair.product

    def wrong(self):
        h = right(self)
        return h * 0.9 if self.rows.code.name == "float32" else h

    monkeypatch.setattr(_codes.Pair, "product", wrong)
    x = clusters(300, 32, 0.5)
    assert_exact(x, 3, prefilter="float32")
    assert neighbour_search(x, 3, prefilter="float32").prefilters == ("float32", "float64")


@pytest.mark.parametrize("name", _codes.available(torch.device("cpu")))
@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "collapsed", "offset", "double"])
def test_proven_bounds_hold_for_every_pair(name, kind):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, 200, generator=g)
    x = {
        "normal": x,
        "relu": x.relu(),
        "heavy": x.pow(5),
        "collapsed": clusters(400, 200, 1e-3),
        "offset": x + 1000,
        "double": x.double() * 1e-30 + 1,
    }[kind]
    if name == "int8" and kind == "double":
        x = x.float()
    centre = x.double().mean(0).float().double()
    reach = float((x.double() - centre).norm(dim=1).max())
    scale = 2.0 ** -math.ceil(math.log2(reach)) if reach else 1.0
    code = _codes.fit(name, centre, scale, x[:100])
    coded = _codes.encode(x, code, multiple=32)
    whole = slice(0, len(coded.values))
    pair = _codes.Pair(coded, coded, whole, whole)
    h = pair.product()[:400, :400].double()
    points = x.double()[coded.order]
    square = torch.stack([(points - p).square().sum(1) for p in points]) * scale**2
    i, j = torch.meshgrid(torch.arange(400), torch.arange(400), indexing="ij")
    low, high = _codes.interval(coded, coded, i, j, h)
    assert bool((low <= square * (1 + 1e-9) + 1e-300).all())
    assert bool((square <= high * (1 + 1e-9) + 1e-300).all())
    exact = _codes.Pair(coded, coded, slice(0, 400), slice(0, 400))
    assert bool((exact.upper(h) >= square * (1 - 1e-9)).all())
    limit = square.median(1).values
    inside = square <= limit[:, None]
    assert bool((h >= exact.threshold(limit)[:, None])[inside].all())


@given(
    n=st.integers(2, 40),
    d=st.integers(1, 6),
    grid=st.integers(1, 50),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_exact_for_any_points_with_ties_and_duplicates(n, d, grid, seed, dtype, data):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-grid, grid + 1, (n, d), generator=g).to(dtype)
    k = data.draw(st.integers(1, n - 1))
    values, indices = truth(x, k)
    found = neighbour_search(x, k)
    # Small integers: sums of squares are exact in float64, so the tie rule decides alone.
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.distances, values)
    if k < n - 1:
        further = truth(x, k + 1)[0]
        assert torch.equal(found.tied, further[:, k] == further[:, k - 1])
    else:
        assert not bool(found.tied.any())


@given(seed=st.integers(0, 10_000), shift=st.floats(-100, 100), power=st.integers(-20, 20))
@settings(max_examples=25, deadline=None)
def test_order_survives_shift_scale_and_permutation(seed, shift, power):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 5, generator=g, dtype=torch.float64)
    _d, i = neighbours(x, 4)
    moved_d, moved_i = neighbours((x + shift) * 2.0**power, 4)
    assert torch.equal(i, moved_i)
    torch.testing.assert_close(moved_d, _d * 2.0**power, rtol=1e-9, atol=0)
    order = torch.randperm(60, generator=g)
    assert torch.equal(order[neighbours(x[order], 4)[1]], i[order])


def test_self_is_removed_by_index_among_duplicates():
    x = torch.tensor([[1.0, 2.0]]).repeat(6, 1)
    distances, indices = neighbours(x, 5)
    assert indices.tolist() == [[j for j in range(6) if j != i] for i in range(6)]
    assert distances.max() == 0


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("k", [1, 5, 130])
def test_thousands_of_twins_are_exact_and_cheap(d, k):
    g = torch.Generator().manual_seed(0)
    base = torch.randint(-3, 4, (5, d), generator=g).float()
    x = torch.cat([base[torch.randint(0, 5, (500,), generator=g)], torch.randint(-9, 9, (40, d), generator=g).float()])
    x = x[torch.randperm(len(x), generator=g)]
    x[0] = -0.0
    x[1] = 0.0
    assert_twins(x, k, None)
    assert_twins(x, k, x[:7] + 1)


def assert_twins(x: Tensor, k: int, query: Tensor | None) -> None:
    values, indices = truth(x, k, query)
    found = neighbour_search(x, k, query=query)
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.distances, values)


def test_a_constant_layer_is_all_ties():
    found = neighbour_search(torch.ones(3000, 64), 5)
    assert found.distances.max() == 0
    assert bool(found.tied.all())
    assert found.indices[:2].tolist() == [[1, 2, 3, 4, 5], [0, 2, 3, 4, 5]]


@pytest.mark.parametrize("factor", [1e-200, 1e-30, 1e30, 1e200])
def test_extreme_scales_keep_their_distances(factor):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, index = neighbours(x, 3)
    far, scaled = neighbours(x * factor, 3)
    assert torch.equal(index, scaled)
    torch.testing.assert_close(far / factor, near, rtol=1e-12, atol=0)


def test_agrees_with_scikit_learn_on_spread_points():
    from sklearn.neighbors import NearestNeighbors

    x = torch.randn(400, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = torch.randn(30, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = NearestNeighbors(n_neighbors=6, algorithm="kd_tree").fit(x.numpy())
    for query, their in ((None, model.kneighbors()), (q, model.kneighbors(q.numpy()))):
        distances, indices = neighbours(x, 6, query=query)
        assert np.array_equal(indices.numpy(), their[1])
        np.testing.assert_allclose(distances.numpy(), their[0], rtol=1e-10)


def test_more_dimensions_than_points_and_a_single_dimension():
    assert_exact(clusters(20, 300, 0.1), 19)
    assert_exact(torch.randn(200, 1, generator=torch.Generator().manual_seed(0)), 5)


def test_outliers_do_not_spoil_the_bound():
    x = clusters(1500, 64, 0.5)
    x[:3] *= 1e6
    assert_exact(x, 5)


@pytest.mark.parametrize(
    ("x", "k", "kwargs", "message"),
    [
        (torch.tensor([[1.0], [math.nan], [2.0]]), 1, {}, r"NaN or infinity in 1 of 3 rows \(first: row 1\)"),
        (torch.tensor([[1.0], [math.inf], [2.0]]), 1, {}, "NaN or infinity"),
        (torch.zeros(4, 2), 4, {}, r"k must be 1\.\.3 for 4 points \(self excluded\), not 4"),
        (torch.zeros(4, 2), 0, {}, "k must be"),
        (torch.zeros(1, 2), 1, {}, "k must be"),
        (torch.zeros(4, 2, 2), 1, {}, "points, dimensions"),
        (torch.zeros(4, 0), 1, {}, "points, dimensions"),
        (torch.zeros(4, 2, dtype=torch.int64), 1, {}, "floating point"),
        (torch.zeros(4, 2), 1, {"query": torch.zeros(2, 3)}, "3 dimensions"),
        (torch.zeros(4, 2), 1, {"query": torch.full((2, 2), math.nan)}, "query"),
        (torch.randn(4, 2), 1, {"prefilter": "int4"}, "prefilter must be"),
    ],
)
def test_bad_input_is_one_clear_error(x, k, kwargs, message):
    with pytest.raises(ValueError, match=message):
        neighbour_search(x, k, **kwargs)


def test_flags_are_as_before_and_do_not_matter():
    x = clusters(300, 64, 0.3)
    right = neighbours(x, 5)[1]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(neighbour_search(x, 5, prefilter="float32").indices, right)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    state = torch.get_rng_state()
    assert not neighbours(x.clone().requires_grad_(), 3)[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_neighbours():
    x = clusters(2000, 128, 1e-3)
    assert torch.equal(neighbours(x.cuda(), 5)[1].cpu(), neighbours(x, 5)[1])
