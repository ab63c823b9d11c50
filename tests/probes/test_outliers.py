"""Outlier scores against closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.preprocessing import StandardScaler

from nucleate.geometry.simplex import simplex_etf
from nucleate.probes.outliers import auroc, false_positive_rate, nc5_angle, nci, neco, principal_space


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "d", "q"), [(200, 12, 5), (20, 50, 19)])
def test_neco_is_its_scikit_learn_form(n: int, d: int, q: int) -> None:
    mix = rand(d, d, seed=1)
    train, other = rand(n, d) @ mix + 3, rand(40, d, seed=2) @ mix
    scaler = StandardScaler().fit(train.numpy())
    pca = PCA(q, svd_solver="full").fit(scaler.transform(train.numpy()))
    complete = torch.tensor(scaler.transform(other.numpy()))
    wanted = torch.tensor(pca.transform(complete.numpy())).norm(dim=1) / complete.norm(dim=1)
    space = principal_space(train, q)
    torch.testing.assert_close(neco(other, space), wanted)
    torch.testing.assert_close(space.variances, torch.tensor(pca.explained_variance_) * (n - 1) / n)
    logits = rand(40, 7, seed=3)
    torch.testing.assert_close(neco(other, space, logits=logits), wanted * logits.max(1).values)


def test_nci_is_its_formula_point_by_point() -> None:
    features, weight = rand(30, 5, seed=1) + 1, rand(4, 5, seed=2)
    bias, mean = rand(4, seed=3), rand(5)
    score = nci(features, weight, mean, bias=bias, alpha=0.3)
    for h, value in zip(features.numpy(), score.tolist(), strict=True):
        own = weight.numpy()[np.argmax(weight.numpy() @ h + bias.numpy())]
        away = h - mean.numpy()
        assert value == pytest.approx(own @ away / np.sqrt(away @ away) + 0.3 * np.abs(h).sum())
    with pytest.raises(ValueError, match=r"mean \(d,\), not \(30, 5\), \(4, 5\) and \(4,\)"):
        nci(features, weight, mean[:4])


def test_random_directions_score_the_root_of_the_share_of_dimensions() -> None:
    space = principal_space(rand(2000, 64), 16)
    score = neco(rand(4000, 64, seed=5), space)
    assert float(score.square().mean()) == pytest.approx(16 / 64, abs=0.01)
    assert float(neco(rand(10, 64), principal_space(rand(2000, 64), 64)).min()) == pytest.approx(1)


def test_collapsed_features_tell_what_lies_outside_their_span() -> None:
    labels = torch.arange(500) % 5
    train = simplex_etf(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[labels]
    train = train + 1e-3 * rand(500, 40)
    space = principal_space(train, 4)
    inside, outside = neco(train, space), neco(0.2 * rand(300, 40, seed=3), space)
    assert auroc(inside, outside) == 1 and false_positive_rate(inside, outside) == 0


def test_float32_features_far_from_zero_are_measured_in_float64() -> None:
    train = (rand(300, 8) * 1e-3 + 5).float()
    torch.testing.assert_close(
        neco(train, principal_space(train, 3)), neco(train.double(), principal_space(train.double(), 3))
    )


def test_more_directions_than_the_features_have_are_refused() -> None:
    flat = torch.cat([rand(50, 3) @ rand(3, 6, seed=1), torch.full((50, 1), 0.1)], 1)
    assert principal_space(flat, 3).rank == 3
    with pytest.raises(ValueError, match="of rank 3: give 1 to 3"):
        principal_space(flat, 4)
    with pytest.raises(ValueError, match="of rank 9"):
        principal_space(rand(10, 30), 10)
    with pytest.raises(ValueError, match="of rank 0"):
        principal_space(torch.ones(4, 2), 1)


def test_the_angle_of_known_directions() -> None:
    means = torch.tensor([[2.0, 0.0], [0.0, -3.0], [math.nan, math.nan]])
    assert nc5_angle(means, torch.tensor([[1.0, 1.0], [3.0, 3.0]])) == pytest.approx(math.sqrt(0.5))
    d = 400
    values = [nc5_angle(rand(10, d, seed=s), rand(1, d, seed=100 + s)) for s in range(100)]
    assert sum(values) / 100 == pytest.approx(math.sqrt(2 / (math.pi * d)), rel=0.1)


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("kept", [0.95, 0.5, 1.0])
def test_rates_are_scikit_learns(levels: int, kept: float) -> None:
    generator = torch.Generator().manual_seed(levels)
    inside = torch.randint(levels, (137,), generator=generator) + levels // 4
    outside = torch.randint(levels, (61,), generator=generator)
    scores, truth = torch.cat([inside, outside]).numpy(), [1] * 137 + [0] * 61
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert false_positive_rate(inside, outside, kept=kept) == pytest.approx(fpr[(tpr >= kept).argmax()])


def test_direction_larger_is_inside() -> None:
    high, low = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
    assert (auroc(high, low), auroc(low, high), auroc(low, low)) == (1.0, 0.0, 0.5)
    assert (false_positive_rate(high, low), false_positive_rate(low, high)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: principal_space(rand(1, 3), 1), "at least two points"),
        (lambda: principal_space(torch.tensor([[math.nan], [1.0]]), 1), "NaN"),
        (lambda: neco(rand(4, 3), principal_space(rand(9, 4), 2)), r"features \(N, 4\)"),
        (lambda: neco(rand(4, 4), principal_space(rand(9, 4), 2), logits=rand(3, 2)), r"logits \(4, C\)"),
        (lambda: nc5_angle(rand(2, 3), rand(0, 3)), "outliers"),
        (lambda: nc5_angle(torch.zeros(2, 3), rand(2, 3)), "length above zero"),
        (lambda: auroc(rand(0), rand(2)), "at least one score"),
        (lambda: false_positive_rate(rand(3), torch.tensor([math.nan])), "NaN"),
        (lambda: false_positive_rate(rand(3), rand(2), kept=0.0), "share"),
    ],
)
def test_bad_input_is_one_clear_error(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
