"""What a kernel predicts: regression with and without ridge, leave-one-out, training at finite time, a bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

JITTER = 1e-8
"""Added to the diagonal of a ridgeless kernel, as a share of its mean."""


def solve(kernel: Tensor, targets: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Coefficients (n, C) of kernel regression, (K + ridge I)^-1 Y; ridgeless with a jitter of 1e-8 mean(diag K).

    Predictions are `cross @ coefficients` with cross = K(test, train). The ridge is not scaled by n.

    Raises:
        ValueError: for a negative ridge, shapes that do not fit, or a kernel that is not positive definite.

    >>> solve(torch.eye(2).double() * 3, torch.tensor([[4.0], [8.0]]), ridge=1.0).flatten().tolist()
    [1.0, 2.0]
    """
    factor = _factor(kernel, ridge)
    return torch.cholesky_solve(_columns(targets, len(kernel)), factor)


def leave_one_out(kernel: Tensor, targets: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Residuals (n, C) of each point under the regression fitted without it, from one factorisation.

    y_i - f_{-i}(x_i) = [(K + ridge I)^-1 y]_i / [(K + ridge I)^-1]_ii. Errors as in `solve`.

    >>> leave_one_out(torch.eye(2).double(), torch.tensor([1.0, -2.0])).flatten().tolist()  # the others tell nothing
    [1.0, -2.0]
    """
    factor = _factor(kernel, ridge)
    inverse = torch.cholesky_inverse(factor)
    return inverse @ _columns(targets, len(kernel)) / inverse.diagonal()[:, None]


class Dynamics:
    """Gradient descent on squared loss, (1/2n) sum |f - y|^2, under a fixed kernel, at any time.

    f_t(x) = f_0(x) + K(x, X) K^-1 (I - e^{-rate K t / n}) (Y - f_0(X)); with `discrete`, (I - rate K / n)^t instead of
    the exponential: t steps of size `rate`. One eigendecomposition serves every t.

    Args:
        kernel: (n, n) on the training points.
        residuals: (n, C), Y - f_0(X).

    Raises:
        ValueError: for shapes that do not fit.

    >>> d = Dynamics(torch.eye(2).double(), torch.tensor([[1.0], [2.0]]))
    >>> d.change(torch.eye(2).double(), 1, rate=1.0, discrete=True).flatten().tolist()  # a step of 1 / n
    [0.5, 1.0]
    """

    def __init__(self, kernel: Tensor, residuals: Tensor) -> None:
        self.n = len(kernel)
        y = _columns(residuals, self.n)
        values, self.vectors = torch.linalg.eigh(kernel.double())
        # Rounding leaves tiny negative values; their directions never move.
        self.values = values.clamp_min(0.0)
        self.projected = self.vectors.T @ y

    @property
    def largest_rate(self) -> float:
        """Step size beyond which gradient descent diverges, 2 n / lambda_max."""
        return 2 * self.n / float(self.values[-1])

    def coefficients(self, time: float, *, rate: float, discrete: bool = False) -> Tensor:
        """(n, C) coefficients whose product with K(x, X) is f_t(x) - f_0(x).

        Raises:
            ValueError: for a negative time or rate, or discrete steps that diverge.
        """
        if time < 0 or rate <= 0 or (discrete and time != round(time)):
            whole = "a whole number of steps" if discrete else "at least 0"
            raise ValueError(f"time must be {whole} and rate above 0, not {time} and {rate}")
        if discrete and rate > self.largest_rate:
            raise ValueError(f"steps of {rate:g} diverge: the largest stable rate is {self.largest_rate:g}")
        a = rate * self.values / self.n
        if discrete:
            smooth = -torch.expm1(time * torch.log1p(-a.clamp_max(1 - 1e-15)))
            learned = torch.where(a < 1, smooth, 1 - (1 - a) ** round(time))
        else:
            learned = -torch.expm1(-a * time)
        # learned / lambda -> rate t / n where lambda is 0.
        weight = torch.where(self.values > 0, learned / self.values, rate * time / self.n)
        out: Tensor = self.vectors @ (weight[:, None] * self.projected)
        return out

    def change(self, cross: Tensor, time: float, *, rate: float, discrete: bool = False) -> Tensor:
        """f_t(x) - f_0(x), (n_test, C), for cross = K(x, X)."""
        return cross.double() @ self.coefficients(time, rate=rate, discrete=discrete)


def complexity_bound(kernel: Tensor, targets: Tensor) -> float:
    r"""Leading term of the bound on the test loss of a wide shallow net, sqrt(2 y^T K^-1 y / n), largest over columns.

    K is the kernel of the first layer, `ntk(x, depth=1, frozen=(1,)) / 2` in this module's convention, for unit
    inputs; y has one column for each one-against-rest problem with targets of size at most 1. A bound on a loss
    between 0 and 1 says nothing from 1 upwards. Arora et al. 2019 (1901.08584), Theorem 5.1.

    >>> round(complexity_bound(torch.eye(4).double() * 8, torch.ones(4)), 6)
    0.5
    """
    y = _columns(targets, len(kernel))
    return math.sqrt(float((2 * (y * solve(kernel, y)).sum(0) / len(y)).max()))


def relative_drift(kernel: Tensor, start: Tensor) -> float:
    """|K_t - K_0|_F / |K_0|_F.

    >>> relative_drift(torch.eye(2) * 3, torch.eye(2))
    2.0
    """
    k, s = kernel.double(), start.double()
    return float((k - s).norm() / s.norm())


def kernel_distance(kernel: Tensor, start: Tensor) -> float:
    """1 - <K_t, K_0> / (|K_t| |K_0|), blind to rescaling (Fort et al. 2020).

    >>> round(kernel_distance(torch.eye(2) * 3, torch.eye(2)), 12)
    0.0
    """
    k, s = kernel.double(), start.double()
    # Normalised before the product, so that equal kernels differ by rounding alone.
    return float((k / k.norm() - s / s.norm()).square().sum()) / 2


def alignment(kernel: Tensor, targets: Tensor, *, centred: bool = True) -> float:
    """<K, Y Y^T> / (|K| |Y Y^T|); centred on both sides it is CKA with the labels (Cortes et al. 2012).

    >>> alignment(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([1.0, -1.0]))
    1.0
    """
    k, y = kernel.double(), _columns(targets, len(kernel))
    if centred:
        k = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
        y = y - y.mean(0)
    return float((y * (k @ y)).sum() / (k.norm() * (y.T @ y).norm()))


def _columns(targets: Tensor, n: int) -> Tensor:
    y = targets.double()
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != n:
        raise ValueError(f"a kernel of {n} points needs targets ({n}, C), not {tuple(targets.shape)}")
    return y


def _factor(kernel: Tensor, ridge: float) -> Tensor:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"the kernel of the training points must be square, not {tuple(kernel.shape)}")
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be at least 0, not {ridge}")
    shift = ridge or JITTER * float(kernel.diagonal().double().mean())
    k = kernel.double().clone()
    k.diagonal().add_(shift)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(k)
    if int(failed):
        raise ValueError(f"the kernel is not positive definite (row {int(failed)}); give a ridge above {ridge:g}")
    return factor
