"""The measures against their textbook definitions, the conventions, and every undefined case."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import reference
from nucleate.geometry.collapse import Moments, Projection, collapse, from_moments
from nucleate.geometry.conventions import CONVENTIONS, Convention
from nucleate.geometry.simplex import simplex_etf


@pytest.mark.parametrize(("c", "d", "n"), [(4, 12, 20), (10, 40, 7), (3, 2, 30), (5, 3, 40), (12, 4, 9)])
@pytest.mark.parametrize("mu_g", ["class", "sample"])
def test_every_measure_is_its_textbook_definition(cloud, c, d, n, mu_g):
    x, y, w, b = cloud(c, d, n)
    keep = torch.ones(len(y), dtype=torch.bool)
    keep[:: c + 1] = mu_g == "class"  # unequal counts, for which the two global means differ
    x, y = x[keep], y[keep]
    want = reference.collapse(x.double().numpy(), y.numpy(), w.double().numpy(), b.double().numpy(), mu_g=mu_g)
    rule = dataclasses.replace(CONVENTIONS["papyan2020"], mu_g=mu_g)
    got = collapse(x, y, weight=w, bias=b, convention=rule)
    for name, value in want.items():
        if c > d + 1 and name in ("nc2_max_angle", "nc2_etf", "nc2_max_angle_weights", "nc2_etf_weights", "nc3_gram"):
            assert math.isnan(getattr(got, name)) and "d + 1" in got.reasons[name]
        else:
            assert getattr(got, name) == pytest.approx(value, rel=2e-5, abs=1e-9), name


def test_the_measures_of_an_etf_are_those_of_collapse(cloud):
    v = simplex_etf(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(20) % 5
    got = collapse(3 * v[y] + 7, y, weight=2 * v, bias=-14 * v.sum(1))
    zero = [f for f in got.asdict() if f.startswith(("nc1_c", "nc1_q", "nc2", "nc3_", "nc4"))]
    for name in ["nc1", "nc3", "bias_collapse", "boundary_spread", *zero]:
        want = 1.0 if name == "nc3_subspace" else 0.0
        assert getattr(got, name) == pytest.approx(want, abs=2e-7), name
    assert got.ncc_accuracy == 1
    assert got.boundary_mean == pytest.approx(3)


def test_a_classifier_at_the_midpoints_agrees_with_the_nearest_mean_only_with_its_bias(cloud):
    # Trap 1: without the bias, agreement 0.958 was reported where 1 is true.
    x, y, _, _ = cloud(6, 8, 50, sigma=1.0)
    m = Moments(6, 8)
    m.update(x, y)
    means = m.means
    bias = -means.square().sum(1) / 2
    assert collapse(x, y, weight=means, bias=bias).nc4 == 0
    assert collapse(x, y, weight=means).nc4 > 0.02
    agreement = collapse(x, y, weight=means, bias=bias, convention="wu2024").nc4
    assert agreement == pytest.approx(1 - collapse(x, y, weight=means).nc4)


def test_weight_and_means_cannot_be_swapped_by_position(cloud):
    x, y, w, _ = cloud(3, 4, 5)
    with pytest.raises(TypeError):
        collapse(x, y, w)  # type: ignore[misc]


def test_logits_of_the_forward_pass_give_what_the_weights_give(cloud):
    x, y, w, b = cloud(6, 16, 40, sigma=1.0)
    m = Moments(6, 16)
    m.update(x, y)
    given, taken = (Projection(m, weight=w, bias=b) for _ in range(2))
    given.update(x, y, logits=x @ w.T + b)
    taken.update(x, y)
    for name, value in given.sums().items():
        torch.testing.assert_close(value, taken.sums()[name], rtol=1e-4, atol=1e-3)
    assert torch.equal(given.mismatch, taken.mismatch)
    unbiased = Projection(m, weight=w, bias=b, convention="wu2024")
    unbiased.update(x, y, logits=x @ w.T + b)
    assert unbiased.share("mismatch") == pytest.approx(collapse(x, y, weight=w).nc4)


CONVENTION_TABLE = {
    # name: (NC1, mu_G matters, NC3 equals, NC4 equals)
    "papyan2020": ("trace", "class", "difference", "mismatch"),
    "papyan_notebook": ("sum", "class", "raw difference", "mismatch"),
    "zhu2021": ("trace", "sample", "raw gram", "mismatch"),
    "han2022": ("sum", "class", "raw difference", "mismatch"),
    "rangamani2023": ("trace", "sample", "subspace", "accuracy"),
    "tirer2023": ("quotient", "class", "difference", "mismatch"),
    "galanti2021": ("cdnv", "class", "difference", "mismatch"),
    "wu2024": ("trace", "class", "raw gram", "agreement"),
}


@pytest.mark.parametrize("name", sorted(CONVENTION_TABLE))
def test_conventions_reproduce_their_sources(cloud, name):
    nc1, mu_g, nc3, nc4 = CONVENTION_TABLE[name]
    x, y, w, b = cloud(4, 9, 25, sigma=1.5)
    x, y = x[5:], y[5:]
    want = reference.collapse(x.double().numpy(), y.numpy(), w.double().numpy(), b.double().numpy(), mu_g=mu_g)
    got = collapse(x, y, weight=w, bias=b, convention=name)
    assert got.convention == name
    values = {"trace": want["nc1"], "sum": 4 * want["nc1"], "quotient": want["nc1_quotient"], "cdnv": want["nc1_cdnv"]}
    assert got.nc1 == pytest.approx(values[nc1], rel=1e-5)
    means = np.stack([x.double().numpy()[y.numpy() == k].mean(0) for k in range(4)])
    centre = means.mean(0) if mu_g == "class" else x.double().numpy().mean(0)
    mc, raw = means - centre, w.double().numpy()
    gram = raw @ mc.T
    target = (np.eye(4) - 0.25) / math.sqrt(3)
    if nc3 == "raw difference":
        expected = ((raw / np.linalg.norm(raw) - mc / np.linalg.norm(mc)) ** 2).sum()
    elif nc3 == "raw gram":
        expected = np.linalg.norm(gram / np.linalg.norm(gram) - target)
    elif nc3 == "subspace":
        a, s = np.linalg.svd(raw, full_matrices=False)[2], np.linalg.svd(means, full_matrices=False)[2]
        expected = np.linalg.svd(a @ s.T, compute_uv=False).mean()
    else:
        expected = want["nc3"]
    assert got.nc3 == pytest.approx(expected, rel=1e-5)
    no_bias = reference.collapse(x.double().numpy(), y.numpy(), raw, 0 * b.double().numpy(), mu_g=mu_g)["nc4"]
    assert got.nc4 == pytest.approx(
        {"mismatch": want["nc4"], "accuracy": want["ncc_accuracy"], "agreement": 1 - no_bias}[nc4]
    )
    ddof = np.linalg.norm(mc, axis=1).std(ddof=1 if nc1 == "sum" else 0) / np.linalg.norm(mc, axis=1).mean()
    assert got.nc2_equinorm == pytest.approx(ddof, rel=1e-5)


def test_jiang2023_measures_unit_features(cloud):
    x, y, w, b = cloud(4, 9, 25, sigma=1.5)
    unit = x / x.norm(dim=1, keepdim=True)
    want = reference.collapse(unit.double().numpy(), y.numpy(), w.double().numpy(), b.double().numpy(), mu_g="sample")
    got = collapse(x, y, weight=w, bias=b, convention="jiang2023")
    assert got.nc1 == pytest.approx(want["nc1"], rel=1e-5)
    m = np.stack([unit.double().numpy()[y.numpy() == k].mean(0) for k in range(4)])
    mc = m - unit.double().numpy().mean(0)
    cos = [(a * r).sum() / np.linalg.norm(a) / np.linalg.norm(r) for a, r in zip(w.double().numpy(), mc, strict=True)]
    assert got.nc3 == pytest.approx(1 - np.mean(cos), rel=1e-5)
    with pytest.raises(ValueError, match="unit=True"):
        from_moments(Moments(4, 9), convention="jiang2023")


def test_every_convention_is_tried_here():
    assert set(CONVENTION_TABLE) | {"jiang2023"} == set(CONVENTIONS)
    with pytest.raises(ValueError, match="papyan2020"):
        collapse(torch.zeros(2, 2), torch.tensor([0, 1]), convention="papyan")
    assert (
        collapse(torch.eye(3), torch.arange(3), convention=Convention(source="mine", mu_g="sample")).convention
        == "custom"
    )


def test_the_global_mean_is_a_choice_under_imbalance(cloud):
    # Trap 8: at 100:1, one feature set read 0.358 and 0.628.
    x, y, _, _ = cloud(4, 32, 200, sigma=0.1)
    keep = (y == 0) | (torch.arange(len(y)) < 8)
    by_class = collapse(x[keep], y[keep])
    by_point = collapse(x[keep], y[keep], convention="zhu2021")
    assert by_point.nc2_etf > by_class.nc2_etf + 0.2


def test_subset_of_classes_is_the_same_as_recomputing_on_it(cloud):
    # Traps 4 and 5: an absent class is left out and said so, never a zero mean.
    x, y, w, b = cloud(6, 10, 12)
    keep = (y != 2) & (y != 5)
    relabel = torch.tensor([0, 1, 9, 2, 3, 9])
    rows = torch.tensor([0, 1, 3, 4])
    got = collapse(x[keep], y[keep], num_classes=6, weight=w, bias=b)
    want = collapse(x[keep], relabel[y[keep]], weight=w[rows], bias=b[rows])
    assert got.absent == (2, 5) and "[2, 5]" in got.reasons["absent"]
    for name, value in want.asdict().items():
        if name not in ("num_classes", "nc4", "boundary_mean", "boundary_spread"):  # the network still has six outputs
            assert getattr(got, name) == pytest.approx(value, rel=1e-9, nan_ok=True), name
    assert got.nc1_per_class.isnan().nonzero().flatten().tolist() == [2, 5]
    assert got.nc1_per_pair.isnan().sum() == 36 - 12


def test_test_points_are_judged_by_train_means(cloud):
    x, y, w, b = cloud(4, 6, 30, sigma=1.0)
    train, test = slice(0, 60), slice(60, 120)
    m = Moments(4, 6)
    m.update(x[train], y[train])
    got = collapse(x[test], y[test], weight=w, bias=b, means=m.means)
    h, means = x[test].double(), m.means
    nearest = torch.cdist(h, means).argmin(1)
    assert got.ncc_accuracy == pytest.approx((nearest == y[test]).double().mean().item())
    assert got.nc4 == pytest.approx(((h @ w.double().T + b).argmax(1) != nearest).double().mean().item())
    assert got.nc1_within == pytest.approx((h - means[y[test]]).square().sum(1).mean().item(), rel=1e-6)
    one_pass = Moments(4, 6, second_moment=True)
    one_pass.update(x[test], y[test])
    streamed = from_moments(one_pass, weight=w, bias=b, means=m.means)
    assert streamed.nc1 == pytest.approx(got.nc1, rel=1e-6)
    assert streamed.nc1_within == pytest.approx(got.nc1_within, rel=1e-6)
    train_only = m.means.clone()
    train_only[1] = math.nan
    with pytest.raises(ValueError, match=r"classes \[1\]"):
        collapse(x[test], y[test], means=train_only)


def test_one_pass_with_the_second_moment_equals_two_passes(cloud):
    x, y, w, b = cloud(5, 20, 30)
    m = Moments(5, 20, second_moment=True)
    m.update(x, y)
    one, two = from_moments(m, weight=w, bias=b), collapse(x, y, weight=w, bias=b)
    for name in ("nc1", "nc1_quotient", "nc1_cdnv", "nc1_vci", "nc2_etf", "nc3", "bias_collapse"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-6)
    assert "second pass" in one.reasons["nc4"]


def test_undefined_values_are_nan_with_a_reason(cloud):
    x, y, w, b = cloud(4, 9, 10)
    one_each = collapse(x[:4], y[:4], weight=w, bias=b)
    assert math.isnan(one_each.nc1) and "one point" in one_each.reasons["nc1"]
    one_class = collapse(x[:5], torch.zeros(5, dtype=torch.long))
    assert math.isnan(one_class.nc1) and "two classes" in one_class.reasons["nc1"] and one_class.nc1_within > 0
    same = collapse(torch.zeros(8, 3), torch.arange(8) % 2)
    assert math.isnan(same.nc1) and "equal" in same.reasons["nc1"]
    two = collapse(x[y < 2], y[y < 2])
    assert math.isnan(two.nc2_etf) and "by construction" in two.reasons["nc2_etf"]  # trap 22
    few = collapse(x[:8], y[:8])
    assert math.isnan(few.nc1_vci) and "identically 0" in few.reasons["nc1_vci"]
    for result in (one_each, one_class, same, two, few, collapse(x, y)):
        undefined = {k for k, v in result.asdict().items() if math.isnan(v)}
        assert undefined - {"condition"} <= set(result.reasons), undefined


def test_one_lonely_point_is_flagged(cloud):
    x, y, _, _ = cloud(3, 5, 10)
    got = collapse(torch.cat([x, x[:1] + 9]), torch.cat([y, torch.tensor([3])]))
    assert got.reasons["singletons"].startswith("classes [3]")
    assert got.nc1_per_class[3] == 0


def test_coincident_means_are_named(cloud):
    x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, -2.0], [3.0, 0.0], [4.0, 0.0]])
    got = collapse(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert math.isinf(got.nc1_cdnv) and got.reasons["nc1_cdnv"] == "classes 0 and 1 have the same mean"
    assert got.rank == 1 and "1 of 2" in got.reasons["rank"]
    assert got.nc4_ties == pytest.approx(4 / 6)


BAD = [
    ({"features": torch.zeros(4, 2, 2)}, "flatten or pool"),
    ({"features": torch.zeros(4, 2, dtype=torch.int64)}, "floating"),
    ({"labels": torch.zeros(4)}, "integers"),
    ({"labels": torch.tensor([0, 1, 1])}, "4 points but 3 labels"),
    ({"labels": torch.tensor([0, 1, 2, 3]), "num_classes": 3}, "0..2, but run from 0 to 3"),
    ({"labels": torch.tensor([0, -1, 1, 1])}, "from -1"),
    ({"features": torch.tensor([[0.0, 1.0], [math.nan, 1.0], [0.0, 2.0], [1.0, 1.0]])}, "class 1 hold NaN"),
    ({"features": torch.tensor([[0.0, 1.0], [1.0, 1.0], [math.inf, 2.0], [1.0, 1.0]])}, "class 0 hold NaN"),
    ({"weight": torch.zeros(2, 3)}, r"\(2, 2\), not \(2, 3\)"),
    ({"weight": torch.full((2, 2), math.nan)}, "classifier holds NaN"),
    ({"bias": torch.zeros(2)}, "bias without a weight"),
    ({"weight": torch.eye(2), "bias": torch.zeros(3)}, r"bias must be"),
    ({"means": torch.zeros(2, 3)}, "means must be"),
    ({"features": np.zeros((4, 2))}, "features must be a tensor, not ndarray"),
    ({"labels": [0, 1, 0, 1]}, "labels must be a tensor, not list"),
    ({"weight": np.eye(2)}, "weight must be a tensor, not ndarray"),
    ({"features": torch.eye(4, 2, dtype=torch.float64) * 1e200}, "class 0 are so large that their squares"),
    ({"features": torch.eye(4, 2, dtype=torch.float64) * 1e-200}, "so small that their squares"),
    ({"features": torch.zeros(0, 2), "labels": torch.zeros(0, dtype=torch.long)}, "no points"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_input_is_one_clear_error(bad, message):
    good = {
        "features": torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 1, 0, 1]),
    }
    with pytest.raises(ValueError, match=message) as error:
        collapse(**{**good, **bad})
    assert "\n" not in str(error.value)


def test_no_global_flag_is_left_changed(cloud):
    x, y, w, b = cloud(70, 80, 4)

    def state():
        return (
            torch.get_float32_matmul_precision(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(),
        )

    before = state()
    collapse(x.requires_grad_(), y, weight=w, bias=b)
    assert state() == before


def test_half_precision_features_are_measured_in_float64_sums(cloud):
    x, y, w, b = cloud(4, 9, 200)
    low = x.bfloat16()
    assert collapse(low, y, weight=w, bias=b).nc1 == pytest.approx(
        collapse(low.double(), y, weight=w, bias=b).nc1, rel=1e-5
    )


def test_the_result_shows_itself_and_escapes(cloud):
    x, y, w, b = cloud(4, 9, 10)
    result = collapse(x, y, weight=w, bias=b)
    assert "nc1=" in repr(result) and "<table>" in result._repr_html_()
    assert all(isinstance(v, float) for v in result.asdict().values())
    odd = dataclasses.replace(result, convention="<script>")
    assert "<script>" not in odd._repr_html_()


def test_chance_levels_are_what_structureless_features_read():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(4000, 60, generator=g), torch.arange(4000) % 10
    got = collapse(x, y, weight=torch.randn(10, 60, generator=g))
    for name in (
        "nc1",
        "nc1_quotient",
        "nc1_cdnv",
        "nc1_vci",
        "nc2_equinorm",
        "nc2_equiangle",
        "nc2_etf",
        "nc3",
        "nc3_gram",
    ):
        assert getattr(got, name) == pytest.approx(got.chance[name], rel=0.4), name
    assert got.chance["nc4"] == 0.9 and abs(got.nc4 - 0.9) < 0.05
    assert collapse(x[:, :5], y).chance["nc1"] == pytest.approx((400 - 1) * 5 / (10 - 5 - 2))
    assert collapse(x[:, :5], y).chance["nc2_etf_floor"] == pytest.approx(math.sqrt(2 - 2 * math.sqrt(5 / 9)))
