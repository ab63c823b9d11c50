"""Points from elsewhere: scores that are large for points like those of the training set, and how well they tell apart.

Direction, everywhere in this module: the larger the score, the more the point looks like the training set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PrincipalSpace:
    """Principal directions of standardised training features. `principal_space` finds them."""

    mean: Tensor
    """(d,) mean of each feature."""
    scale: Tensor
    """(d,) standard deviation of each feature (over N), 1 for a feature that is constant."""
    basis: Tensor
    """(d, q) orthonormal, largest variance first."""
    variances: Tensor
    """(q,) variance of the standardised features along each direction."""
    rank: int
    """Directions in which the training features vary at all."""

    def standardised(self, features: Tensor) -> Tensor:
        """Features (N, d) in units of the training features' mean and standard deviation, float64.

        Raises:
            ValueError: for features of another width.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"expected features (N, {len(self.mean)}), not {tuple(features.shape)}")
        return (features.to(self.mean) - self.mean) / self.scale


@torch.no_grad()
def principal_space(features: Tensor, dim: int) -> PrincipalSpace:
    """The top `dim` principal directions of standardised features.

    Args:
        features: (N, d) of the training points.
        dim: q, at most the rank of the standardised features, which is min(N - 1, d) or less.

    Raises:
        ValueError: for q below 1 or above the rank, where directions would be arbitrary; for features that are not
            finite.

    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 5.0], [-2.0, -5.0]])
    >>> space = principal_space(x, 1)
    >>> space.basis.abs().flatten().round(decimals=4).tolist(), space.rank
    ([0.7071, 0.7071], 2)
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected features (N, d) of at least two points, not {tuple(features.shape)}")
    x = features.double()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the features hold NaN or infinity")
    mean = x.mean(0)
    x = x - mean
    scale = x.square().mean(0).sqrt()
    # A constant feature leaves only the rounding of its mean behind.
    rounding = torch.finfo(torch.float64).eps * mean.abs()
    scale = torch.where(scale > 4 * rounding, scale, torch.ones_like(scale))
    x = x / scale
    # The triangle of a QR has the singular values of x, at the cost of a product and without squaring the condition.
    triangle = torch.linalg.qr(x, mode="r").R
    _, values, right = torch.linalg.svd(triangle, full_matrices=False)
    smallest = max(x.shape) * torch.finfo(torch.float64).eps * float(values[0])
    rank = min(int((values > smallest).sum()), len(x) - 1)
    if not 1 <= dim <= rank:
        raise ValueError(f"{dim} principal directions of features of rank {rank}: give 1 to {rank}")
    return PrincipalSpace(mean, scale, right[:dim].T, values[:dim].square() / len(x), rank)


@torch.no_grad()
def neco(features: Tensor, space: PrincipalSpace, *, logits: Tensor | None = None) -> Tensor:
    """NECO score |P_q h| / |h| of each point, (N,): the share of its length in the training features' principal space.

    h are the standardised features. Near 1 for points like the training set's, about sqrt(q/d) for directions drawn at
    random; with the logits given, the score is multiplied by the largest logit, as the authors do for most networks.
    0 for a point at the training mean, which has no direction.

    Raises:
        ValueError: for shapes that do not fit.

    >>> x = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, -2.0, 0.0]])
    >>> neco(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 2**0.5]]), principal_space(x, 2)).round(decimals=4).tolist()
    [1.0, 0.7071]

    (Ben Ammar et al. 2024, arXiv 2310.06823.)
    """
    h = space.standardised(features)
    length = torch.linalg.vector_norm(h, dim=1)
    inside = torch.linalg.vector_norm(h @ space.basis, dim=1)
    score = torch.where(length > 0, inside / length.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    if logits is None:
        return score
    if logits.ndim != 2 or len(logits) != len(score):
        raise ValueError(f"expected logits ({len(score)}, C), not {tuple(logits.shape)}")
    return score * logits.double().max(1).values


@torch.no_grad()
def nci(features: Tensor, weight: Tensor, mean: Tensor, *, bias: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """NCI score <w_c, h - mu> / |h - mu| + alpha |h|_1 of each point, (N,), float64, with c = argmax(W h + b).

    Collapsed features point along the row of their class, and lie further out than those of other points.

    Args:
        features: (N, d).
        weight, bias: the classifier, (C, d) and (C,).
        mean: (d,) mean mu of the training features.
        alpha: how much the features' size counts.

    Returns:
        nan in place of the first term for a point at the mean, which has no direction.

    Raises:
        ValueError: for shapes that do not fit.

    >>> w = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    >>> nci(torch.tensor([[2.0, 1.0], [0.5, 2.0]]), w, torch.tensor([0.0, 1.0]), alpha=0.1).tolist()
    [3.3..., 1.59...]

    (Liu and Qin 2025, arXiv 2311.01479.)
    """
    if features.ndim != 2 or weight.ndim != 2 or not features.shape[1] == weight.shape[1] == mean.numel():
        raise ValueError(
            f"expected features (N, d), weight (C, d) and mean (d,), not {tuple(features.shape)}, "
            f"{tuple(weight.shape)} and {tuple(mean.shape)}"
        )
    h, w = features.double(), weight.double()
    logits = h @ w.T if bias is None else h @ w.T + bias.double()
    centred = h - mean.double()
    along = (w[logits.argmax(1)] * centred).sum(1) / torch.linalg.vector_norm(centred, dim=1)
    score: Tensor = along + alpha * h.abs().sum(1)
    return score


@torch.no_grad()
def nc5_angle(means: Tensor, outliers: Tensor) -> float:
    """NC5: mean over classes of |cos(mu_c, mu_out)|, with uncentred means; 0 where outliers are orthogonal to all.

    Chance for directions drawn at random: sqrt(2 / (pi d)).

    Args:
        means: (C, d) class means of the training features; a row of nan is an absent class and is left out.
        outliers: (N, d) features of points from elsewhere.

    Raises:
        ValueError: for shapes that do not fit, no point, no class, or a mean of length zero.

    >>> nc5_angle(torch.eye(3)[:2], torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 1.0]]))
    0.0

    (Ben Ammar et al. 2024, arXiv 2310.06823.)
    """
    if means.ndim != 2 or outliers.ndim != 2 or means.shape[1] != outliers.shape[1] or not len(outliers):
        raise ValueError(
            f"expected means (C, d) and outliers (N, d), not {tuple(means.shape)}, {tuple(outliers.shape)}"
        )
    m = means.double()
    m = m[torch.isfinite(m).all(1)]
    centre = outliers.double().mean(0)
    lengths = torch.linalg.vector_norm(m, dim=1)
    length = float(torch.linalg.vector_norm(centre))
    if not len(m) or not bool((lengths > 0).all()) or not length > 0:
        raise ValueError("every mean, and that of the outliers, needs a length above zero")
    return float(((m @ centre) / lengths / length).abs().mean())


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a training-like point scores above one from elsewhere, ties counted by half; chance 0.5.

    Args:
        inside: (N,) scores of points like the training set's.
        outside: (M,) scores of points from elsewhere.

    Raises:
        ValueError: without scores on either side, or with NaN.

    >>> auroc(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))
    0.875
    """
    a, b = _scores(inside, outside)
    ordered = b.sort().values
    below = torch.searchsorted(ordered, a)
    not_above = torch.searchsorted(ordered, a, right=True)
    return float((below + not_above).sum()) / (2 * len(a) * len(b))


def false_positive_rate(inside: Tensor, outside: Tensor, *, kept: float = 0.95) -> float:
    """Share of points from elsewhere that pass the highest threshold which `kept` of the inside points pass; 0 is best.

    A point passes with a score at or above the threshold. kept = 0.95 gives what is known as FPR@95.

    Raises:
        ValueError: for a share outside (0, 1], without scores on either side, or with NaN.

    >>> false_positive_rate(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0.0, 2.5]), kept=0.75)
    0.5
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept is a share in (0, 1], not {kept}")
    a, b = _scores(inside, outside)
    ordered = a.sort(descending=True).values
    passed = torch.arange(1, len(a) + 1, dtype=torch.float64) / len(a)
    threshold = ordered[int((passed < kept).sum())]
    return float((b >= threshold).double().mean())


def _scores(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    a, b = inside.detach().double().cpu().flatten(), outside.detach().double().cpu().flatten()
    if not len(a) or not len(b) or bool(a.isnan().any()) or bool(b.isnan().any()):
        raise ValueError("both sides need at least one score, and none may be NaN")
    return a, b
