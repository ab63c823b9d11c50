"""More classes than a simplex has room for (C > d + 1): one-vs-rest margins against the best that is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry.hull import nearest_in_hull


@dataclass(frozen=True)
class Margin:
    """One-vs-rest margin of unit rows, with a certificate."""

    value: float
    """min over c of the distance of w_c from the convex hull of the others: an upper bound of it."""
    lower: float
    """A lower bound of the same; `value - lower` is the certified gap."""
    per_class: Tensor
    """(C,) margin of each class."""


def one_vs_rest_margin(vectors: Tensor) -> Margin:
    """Smallest distance of a unit row from the convex hull of the others, rho(W) = min_c dist(w_c, conv{w_j, j != c}).

    Larger is better; its maximisers are "softmax codes", the simplex ETF for C <= d + 1. jiang2023 calls this GNC2;
    what wu2024 calls GNC2, hyperspherical uniformity, is another quantity.

    Args:
        vectors: (C, d); rows are scaled to length one.

    Raises:
        ValueError: for fewer than two rows, or one of length zero.

    >>> square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> round(one_vs_rest_margin(square).value, 6)  # 1 - cos(2 pi/C), the best in the plane
    1.0

    (Jiang et al. 2023, arXiv 2310.05351.)
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f"expected at least two rows (classes, dimensions), not {tuple(vectors.shape)}")
    norms = torch.linalg.vector_norm(vectors.double(), dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ValueError(f"row {int((norms[:, 0] <= 0).nonzero()[0])} has length zero and no direction")
    unit = vectors.double() / norms
    keep = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    points = [nearest_in_hull(unit[keep[c]], unit[c]) for c in range(len(unit))]
    return Margin(
        value=min(p.distance for p in points),
        lower=min(p.lower for p in points),
        per_class=torch.tensor([p.distance for p in points], dtype=torch.float64),
    )


@dataclass(frozen=True)
class MarginOptimum:
    """The largest one-vs-rest margin that any C unit vectors in d dimensions have; lower == upper where it is known."""

    lower: float
    upper: float


def margin_optimum(num_classes: int, dim: int) -> MarginOptimum:
    """Known optimum of the one-vs-rest margin, or bounds of it.

    C/(C-1) for C <= d + 1; 1 for d + 1 < C <= 2d; 1 - cos(2 pi/C) for d = 2; otherwise bounds by sphere packing (loose:
    C = 100, d = 8 gives 0.13 to 1, the value for C = 2d + 1 and more classes being at most that for 2d).

    Raises:
        ValueError: for C < 2 or d < 1, and for d = 1 with C > 2, where two rows coincide.

    >>> margin_optimum(4, 3), margin_optimum(6, 3)
    (MarginOptimum(lower=1.3..., upper=1.3...), MarginOptimum(lower=1.0, upper=1.0))

    (Jiang et al. 2023, arXiv 2310.05351.)
    """
    c, d = num_classes, dim
    if c < 2 or d < 1 or (d == 1 and c > 2):
        raise ValueError(f"no margin is defined for {c} unit vectors in {d} dimensions")
    if c <= d + 1:
        return MarginOptimum(c / (c - 1), c / (c - 1))
    if d == 2:
        return MarginOptimum(1 - math.cos(2 * math.pi / c), 1 - math.cos(2 * math.pi / c))
    if c <= 2 * d:
        return MarginOptimum(1.0, 1.0)
    log_pi = math.log(math.pi) / 2
    low = log_pi - math.log(c) + math.lgamma((d + 1) / 2) - math.lgamma(d / 2 + 1)
    high = math.log(2) + log_pi - math.log(c) + math.lgamma((d + 1) / 2) - math.lgamma(d / 2)
    # One vector more cannot raise the largest smallest margin, so the value at C = 2d bounds it too.
    return MarginOptimum(0.5 * math.exp(2 * low / (d - 1)), min(1.0, 2 * math.exp(high / (d - 1))))
