"""Least squares on N features of n points, minimum-norm or ridge, and what its risk must be."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CUTOFF = 1e-12
"""Singular values below this share of the largest count as zero."""

NEAR = 1.3
"""Within this ratio of N to n the spectrum reaches down to zero, and a Gram matrix would square that."""


class LeastSquares:
    """Fits of targets (n, C) to features (n, N) at any ridge, from one decomposition in float64.

    `coefficients(0)` is the minimum-norm least-squares solution F^+ Y; `coefficients(ridge)` minimises
    |F A - Y|^2 + ridge |A|^2 (the ridge is not scaled by n).

    Raises:
        ValueError: for shapes that do not fit.

    >>> fit = LeastSquares(torch.tensor([[3.0, 4.0]]), torch.tensor([[25.0]]))
    >>> torch.round(fit.coefficients(0.0).flatten(), decimals=9).tolist()
    [3.0, 4.0]
    """

    def __init__(self, features: Tensor, targets: Tensor) -> None:
        f = features.double()
        y = targets.double()
        y = y[:, None] if y.ndim == 1 else y
        if f.ndim != 2 or y.ndim != 2 or len(f) != len(y):
            raise ValueError(f"features {tuple(f.shape)} and targets {tuple(y.shape)} must share their points")
        n, count = f.shape
        self._back: Callable[[Tensor], Tensor]
        # A = back(w * inner) with w = 1 / (s^2 + ridge)
        if max(n, count) <= NEAR * min(n, count):
            left, singular, right = torch.linalg.svd(f, full_matrices=False)
            self._square, self._inner, cutoff = singular.square(), singular[:, None] * (left.T @ y), CUTOFF**2
            self._back = lambda inner: right.T @ inner
        elif n < count:
            # A Gram's small eigenvalues carry the rounding of its large ones.
            self._square, left = torch.linalg.eigh(f @ f.T)
            self._inner, cutoff = left.T @ y, CUTOFF
            self._back = lambda inner: f.T @ (left @ inner)
        else:
            self._square, right = torch.linalg.eigh(f.T @ f)
            self._inner, cutoff = right.T @ (f.T @ y), CUTOFF
            self._back = lambda inner: right @ inner
        self._kept = self._square > cutoff * self._square.max()

    def coefficients(self, ridge: float = 0.0) -> Tensor:
        """(N, C) coefficients A.

        Raises:
            ValueError: for a negative ridge.
        """
        if not (math.isfinite(ridge) and ridge >= 0):
            raise ValueError(f"ridge must be at least 0, not {ridge}")
        weight = torch.where(self._kept, 1 / (self._square + ridge), 0.0)
        return self._back(weight[:, None] * self._inner)


def ridgeless_risk(n: int, p: int, *, signal: float = 1.0, noise: float) -> float:
    """Exact excess risk E|b_hat - b|^2 of minimum-norm least squares on n Gaussian points of p coordinates.

    noise p / (n - p - 1) for p < n - 1;  signal (1 - n / p) + noise n / (p - n - 1) for p > n + 1; infinite between.
    `signal` is |b|^2, `noise` the variance of the errors. The limit n, p -> infinity is Hastie et al. 2019, Theorem 1.

    >>> ridgeless_risk(200, 400, noise=0.25)
    0.7512562814070352
    """
    if p < n - 1:
        return noise * p / (n - p - 1)
    if p > n + 1:
        return signal * (1 - n / p) + noise * n / (p - n - 1)
    return math.inf


def best_ridge(n: int, p: int, *, signal: float = 1.0, noise: float) -> tuple[float, float]:
    """Ridge that is best in the limit, to be added to F^T F, and its excess risk (Hastie et al. 2019, Theorem 6).

    lambda = noise p / (n signal) on F^T F / n + lambda I; risk noise (p / n) m(-lambda).

    >>> ridge, risk = best_ridge(200, 200, noise=0.25)
    >>> round(ridge, 3), round(risk, 3)
    (50.0, 0.39)
    """
    gamma = p / n
    ridge = noise * gamma / signal
    b = 1 - gamma + ridge
    m = (-b + math.sqrt(b * b + 4 * gamma * ridge)) / (2 * gamma * ridge)
    return n * ridge, noise * gamma * m
