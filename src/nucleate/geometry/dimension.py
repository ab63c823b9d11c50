"""How many dimensions the points really use: from two neighbours, from the density around them, from the spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nucleate.geometry._checks import check_points
from nucleate.geometry.neighbours import Neighbours, neighbour_search

Method = Literal["ml", "base"]


@dataclass(frozen=True)
class IntrinsicDimension:
    """A two-neighbour estimate with its standard error; nan with a reason where none exists.

    `used`: points behind the estimate; `dropped`: points with a twin at distance zero, which have no ratio.
    """

    value: float
    stderr: float
    used: int
    dropped: int
    method: str
    fraction: float
    reason: str | None


@dataclass(frozen=True)
class Spectrum:
    """A dimension read off the covariance spectrum.

    `bound` = min(N - 1, d) is the largest possible value and `normalised` = value/bound; `chance` is the expectation
    for isotropic Gaussian points (nan where no closed form is known). `reason` warns where N <= d, or says why value
    is nan.
    """

    value: float
    bound: int
    normalised: float
    chance: float
    reason: str | None


def intrinsic_dimension(x: Tensor) -> float:
    """Estimate the intrinsic dimension by the ratios of two neighbour distances: the value of `two_nn`, all points.

    Raises:
        ValueError: where points have no such dimension, with the reason (`two_nn` gives nan and the reason); otherwise
            as in `two_nn`.

    >>> x = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    >>> abs(intrinsic_dimension(torch.cat([x, x.sum(1, keepdim=True)], 1)) - 2) < 0.25
    True
    """
    found = two_nn(x)
    if math.isnan(found.value):
        raise ValueError(f"the points have no intrinsic dimension: {found.reason}")
    return found.value


@torch.no_grad()
def two_nn(
    x: Tensor, *, method: Method = "ml", fraction: float | None = None, found: Neighbours | None = None
) -> IntrinsicDimension:
    """Estimate the intrinsic dimension from t_i = ln(r_i2 / r_i1): exponential with rate D for locally flat density.

    "ml": m / (t_(1) + .. + t_(m) + (N - m) t_(m)), the maximum of the likelihood censored beyond the m smallest;
    (N - 1) / sum t_i with all of them. "base": the slope through zero of -ln(1 - i/N) on the sorted t_(i).

    Args:
        x: (N, d) points.
        method: "ml" or "base".
        fraction: share m/N of the smallest ratios that is used; 1 for "ml" and 0.9 for "base" if none.
        found: neighbours of x that are there already (two columns or more).

    Raises:
        ValueError: for fewer than 3 points, an unknown method, or a fraction outside (0, 1].

    Facco, d'Errico, Rodriguez, Laio 2017 (Sci. Rep. 7:12140).

    >>> line = torch.rand(400, 1, generator=torch.Generator().manual_seed(0))
    >>> abs(two_nn(line).value - 1) < 0.15
    True
    """
    check_points(x, "two_nn")
    if method not in ("ml", "base"):
        raise ValueError(f"method must be 'ml' or 'base', not {method!r}")
    fraction = (1.0 if method == "ml" else 0.9) if fraction is None else fraction
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], not {fraction}")
    if len(x) < 3:
        raise ValueError(f"two_nn needs at least 3 points, not {len(x)}")
    found = neighbour_search(x, 2) if found is None else found
    near, far = found.distances[:, 0], found.distances[:, 1]
    kept = near > 0
    n, dropped = int(kept.sum()), int((~kept).sum())

    def result(value: float, used: int, reason: str | None) -> IntrinsicDimension:
        stderr = value / math.sqrt(used) if used else math.nan
        return IntrinsicDimension(value, stderr, used, dropped, method, fraction, reason)

    if n < 3:
        return result(math.nan, 0, f"only {n} of {len(x)} points have no twin at distance zero; 3 are needed")
    t = (far[kept] / near[kept]).log().sort().values
    m = min(n, max(2, math.floor(fraction * n)))
    if float(t[m - 1]) == 0:
        return result(math.nan, m, "all nearest distances are tied (a lattice or a regular simplex): every ratio is 1")
    reason = f"{dropped} of {len(x)} points have a twin at distance zero and were dropped" if dropped else None
    if method == "ml":
        total = float(t[:m].sum() + (n - m) * t[m - 1])
        return result((m if m < n else n - 1) / total, m, reason)
    m = min(m, n - 1)
    empirical = -torch.log1p(-torch.arange(1, m + 1, dtype=torch.float64, device=t.device) / n)
    return result(float((t[:m] * empirical).sum() / t[:m].square().sum()), m, reason)


@torch.no_grad()
def participation_ratio(x: Tensor) -> float:
    """Effective number of directions with variance: (sum l)^2 / sum l^2 over covariance eigenvalues l, centred.

    The value of `participation`, which adds bound, chance and warnings.

    >>> participation_ratio(torch.eye(4))
    3.0
    """
    return participation(x).value


@torch.no_grad()
def participation(x: Tensor) -> Spectrum:
    """Participation ratio (sum l)^2 / sum l^2 of the centred points, with its bound min(N-1, d) and its chance level.

    Chance (isotropic Gaussian points): (N-1) d / (N-1+d). At complete collapse to a simplex: C - 1.

    Raises:
        ValueError: for anything but finite (N, d) floating points.

    >>> participation(torch.eye(4)).normalised
    1.0
    """
    gram = _gram(x, "participation")
    total, squares = gram.trace(), gram.square().sum()
    n, d = x.shape
    chance = (n - 1) * d / (n - 1 + d) if n > 1 else math.nan
    return _spectrum(float(total * total / squares), n, d, chance)


@torch.no_grad()
def effective_rank(x: Tensor) -> Spectrum:
    """Effective rank exp(-sum p ln p), p = l / sum l over covariance eigenvalues l of the centred points.

    Raises:
        ValueError: for anything but finite (N, d) floating points.

    Roy, Vetterli 2007 (EUSIPCO), on the covariance instead of the singular values.

    >>> round(effective_rank(torch.eye(4)).value, 6)
    3.0
    """
    eigenvalues = torch.linalg.eigvalsh(_gram(x, "effective_rank")).clamp_min(0)
    p = eigenvalues / eigenvalues.sum()
    return _spectrum(float(torch.special.entr(p).sum().exp()), len(x), x.shape[1], math.nan)


@torch.no_grad()
def stable_rank(a: Tensor) -> float:
    """Stable rank |A|_F^2 / |A|_2^2 of a matrix as it is (not centred); nan for the zero matrix.

    Raises:
        ValueError: for anything but a finite floating matrix.

    >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    1.5
    """
    check_points(a, "stable_rank")
    wide = a.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    top = float(torch.linalg.eigvalsh(gram)[-1])
    return float(gram.trace()) / top if top > 0 else math.nan


@torch.no_grad()
def knn_density(x: Tensor, k: int, *, dimension: float | None = None, found: Neighbours | None = None) -> Tensor:
    """Log density of each point from the volume of the ball to its k-th neighbour; standard error 1/sqrt(k).

    ln rho_i = ln k - ln(N V_D r_ik^D), V_D = pi^(D/2) / Gamma(D/2 + 1), D the intrinsic dimension.

    Args:
        x: (N, d) points.
        k: neighbours.
        dimension: D; `intrinsic_dimension(x)` if none.
        found: neighbours of x that are there already (k columns or more).

    Returns:
        (N,) float64; +inf where k twins lie at distance zero.

    Raises:
        ValueError: if the dimension is not positive and finite (and none could be estimated).

    >>> x = torch.arange(100.0)[:, None] / 100
    >>> round(float(knn_density(x, 4, dimension=1.0)[50].exp()), 4)
    1.0
    """
    check_points(x, "knn_density")
    found = neighbour_search(x, k) if found is None else found
    if dimension is None:
        estimate = two_nn(x, found=found if found.indices.shape[1] >= 2 else None)
        dimension = estimate.value
        if not dimension > 0:
            raise ValueError(f"no intrinsic dimension ({estimate.reason}); give dimension=")
    if not (dimension > 0 and math.isfinite(dimension)):
        raise ValueError(f"dimension must be positive and finite, not {dimension}")
    volume = dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1)
    return math.log(k) - math.log(len(x)) - volume - dimension * found.distances[:, k - 1].log()


def _gram(x: Tensor, name: str) -> Tensor:
    """The smaller of covariance and Gram matrix of the centred points: the same non-zero spectrum."""
    check_points(x, name)
    wide = x.double()
    wide = wide - wide.mean(0)
    return wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide


def _spectrum(value: float, n: int, d: int, chance: float) -> Spectrum:
    bound = min(n - 1, d)
    if not math.isfinite(value):
        return Spectrum(math.nan, bound, math.nan, chance, "all points are equal: there is no variance")
    reason = f"{n} points in {d} dimensions: the value cannot exceed {bound}, whatever the data" if n <= d else None
    return Spectrum(value, bound, value / bound, chance, reason)
