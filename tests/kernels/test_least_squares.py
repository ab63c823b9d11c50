"""Random features and least squares against lstsq, the kernel limit and the exact risk of Gaussian regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from nucleate.data import load
from nucleate.kernels.exact import nngp
from nucleate.kernels.features import draw_features
from nucleate.kernels.least_squares import LeastSquares, best_ridge, ridgeless_risk
from nucleate.spec import DataSpec


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(30, 5), (30, 25), (30, 30), (30, 33), (30, 90)])
def test_minimum_norm_and_ridge_against_lapack(shape: tuple[int, int]) -> None:
    f, y = draw(*shape), draw(30, 3, seed=1)
    fit = LeastSquares(f, y)
    wanted = torch.linalg.lstsq(f, y, driver="gelsd", rcond=1e-12).solution
    torch.testing.assert_close(fit.coefficients(), wanted, rtol=1e-7, atol=1e-9)
    ridged = torch.linalg.solve(f.T @ f + 0.3 * torch.eye(shape[1]).double(), f.T @ y)
    torch.testing.assert_close(fit.coefficients(0.3), ridged)


def test_features_that_depend_on_each_other_do_not_blow_up() -> None:
    f = draw(20, 4)
    twice = torch.cat([f, f], dim=1)
    a = LeastSquares(twice, draw(20, 1, seed=1)).coefficients()
    torch.testing.assert_close(a[:4], a[4:])
    assert float(a.norm()) < 10


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0])
def test_ridgeless_risk_is_the_exact_one(gamma: float) -> None:
    """Hastie et al. 2019 at finite n: within three standard errors of the mean over draws."""
    n, draws, noise = 200, 60, 0.25
    p = round(gamma * n)
    risks = []
    for seed in range(draws):
        x, b, e = draw(n, p, seed=seed), draw(p, 1, seed=1000 + seed), draw(n, 1, seed=2000 + seed)
        b = b / b.norm()
        a = LeastSquares(x, x @ b + math.sqrt(noise) * e).coefficients()
        risks.append(float((a - b).square().sum()))
    error = np.std(risks, ddof=1) / math.sqrt(draws)
    assert abs(np.mean(risks) - ridgeless_risk(n, p, noise=noise)) < 3 * error


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_best_ridge_reaches_its_risk_and_no_other_is_better(gamma: float) -> None:
    n, draws, noise = 200, 40, 0.25
    p = round(gamma * n)
    ridge, limit = best_ridge(n, p, noise=noise)
    risks = {factor: [] for factor in (0.25, 1.0, 4.0)}
    for seed in range(draws):
        x, b, e = draw(n, p, seed=seed), draw(p, 1, seed=1000 + seed), draw(n, 1, seed=2000 + seed)
        b = b / b.norm()
        fit = LeastSquares(x, x @ b + math.sqrt(noise) * e)
        for factor, own in risks.items():
            own.append(float((fit.coefficients(factor * ridge) - b).square().sum()))
    mean = {factor: np.mean(own) for factor, own in risks.items()}
    assert mean[1.0] == pytest.approx(limit, rel=0.04)
    assert mean[1.0] < min(mean[0.25], mean[4.0])


def test_the_risk_is_infinite_at_the_threshold() -> None:
    assert [ridgeless_risk(10, p, noise=1.0) for p in (9, 10, 11)] == [math.inf] * 3


def test_features_are_nested_and_their_kernel_has_its_limit() -> None:
    x = draw(10, 6)
    features = draw_features(x, 40_000, generator=Generator().manual_seed(0))
    torch.testing.assert_close(features(x, 7) * math.sqrt(7), features(x, 40_000)[:, :7] * 200)
    f = features(x, 40_000)
    z = (x - x.mean(0)) / (x - x.mean(0)).norm(dim=1).mean()
    # An offset of variance 0.1^2 is the recursion's bias; its kernel has twice the size, and the bias added again.
    wanted = (nngp(z, depth=1, bias=0.1) - 0.01) / 2
    assert float((f @ f.T - wanted).norm() / wanted.norm()) < 0.02


def test_the_test_error_peaks_where_features_match_points() -> None:
    data = load(DataSpec(train_size=200, label_noise=0.2))
    targets = torch.eye(10).double()[data.train_labels] - 0.1
    features = draw_features(data.train_inputs, 800, generator=Generator().manual_seed(0))
    errors = {}
    for count in (20, 40, 100, 150, 190, 200, 210, 260, 400, 800):
        a = LeastSquares(features(data.train_inputs, count), targets).coefficients()
        errors[count] = float(((features(data.test_inputs, count) @ a).argmax(1) != data.test_labels).float().mean())
    assert max(errors, key=errors.__getitem__) == 200
    assert errors[200] > errors[40] + 0.2 and errors[200] > errors[800] + 0.2


def test_wrong_arguments_are_refused() -> None:
    x = draw(5, 3)
    with pytest.raises(ValueError, match="relu or fourier, not 'tanh'"):
        draw_features(x, 4, kind="tanh", generator=Generator())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1, not 0"):
        draw_features(x, 0, generator=Generator())
    with pytest.raises(ValueError, match="are the same"):
        draw_features(torch.ones(5, 3), 4, generator=Generator())
    features = draw_features(x, 4, generator=Generator())
    with pytest.raises(ValueError, match=r"in 1 \.\. 4, not 5"):
        features(x, 5)
    with pytest.raises(ValueError, match="must share their points"):
        LeastSquares(x, torch.ones(4))
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        LeastSquares(x, torch.ones(5)).coefficients(-1.0)
