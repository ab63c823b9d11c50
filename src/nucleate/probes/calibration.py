"""Whether a network's confidence is its accuracy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BINS = 15
"""Of the usual calibration error."""


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, *, bins: int = BINS, binning: Literal["width", "mass"] = "width"
) -> float:
    """Mean over bins of |accuracy - confidence|, weighted by their points, in [0, 1]; the confidence is max_c p_c.

    Args:
        probabilities: (N, C), rows on the standard simplex.
        labels: (N,).
        bins: how many.
        binning: "width", bins of equal width on (0, 1] (Guo et al. 2017); "mass", bins of equally many points, in
            order of confidence, ties by index (Nguyen, O'Connor 2015).

    Raises:
        ValueError: for shapes that do not fit, no points, fewer than one bin, or an unknown binning.

    >>> p = torch.tensor([[0.75, 0.25]]).expand(4, 2)
    >>> expected_calibration_error(p, torch.tensor([0, 0, 0, 1])), expected_calibration_error(p, torch.tensor([0] * 4))
    (0.0, 0.25)
    >>> p = torch.tensor([[0.75, 0.25], [0.74, 0.26]])
    >>> round(expected_calibration_error(p, torch.tensor([0, 1]), bins=2, binning="mass"), 3)
    0.495
    """
    if binning not in ("width", "mass"):
        raise ValueError(f"binning must be 'width' or 'mass', not {binning!r}")
    gaps = calibration_gaps(probabilities, labels, bins=bins, binning=binning)
    return float(gaps.abs().sum() / len(labels))


def calibration_gaps(
    probabilities: Tensor, labels: Tensor, *, bins: int = BINS, binning: Literal["width", "mass"] = "width"
) -> Tensor:
    """Sums over the points of each bin of (right - confidence), (bins,) float64; those of equal width add up.

    Raises:
        ValueError: for shapes that do not fit, no points, or fewer than one bin.

    >>> calibration_gaps(torch.tensor([[0.75, 0.25]]), torch.tensor([1]), bins=2).tolist()
    [0.0, -0.75]
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels) or bins < 1:
        raise ValueError(
            f"expected probabilities (N, C), labels (N,) and at least one bin, not {tuple(probabilities.shape)}, "
            f"{tuple(labels.shape)} and {bins}"
        )
    confidence, guess = probabilities.double().max(1)
    if binning == "width":
        where = (confidence * bins).ceil().long().clamp(1, bins) - 1
    else:
        rank = torch.empty_like(labels, dtype=torch.long)
        rank[confidence.argsort(stable=True)] = torch.arange(len(labels), device=rank.device)
        where = rank * bins // len(labels)
    gap = torch.zeros(bins, dtype=torch.float64, device=probabilities.device)
    return gap.index_add_(0, where, (guess == labels).double() - confidence)
