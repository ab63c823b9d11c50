"""Whether a network's confidence is its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Mean over bins of equal width of |accuracy - confidence|, weighted by their points, in [0, 1] (Guo et al. 2017).

    Args:
        probabilities: (N, C), rows on the standard simplex.
        labels: (N,).
        bins: over the confidence, max_c p_c, in (0, 1].

    Raises:
        ValueError: for shapes that do not fit, no points, or fewer than one bin.

    >>> p = torch.tensor([[0.75, 0.25]]).expand(4, 2)
    >>> expected_calibration_error(p, torch.tensor([0, 0, 0, 1])), expected_calibration_error(p, torch.tensor([0] * 4))
    (0.0, 0.25)
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels) or bins < 1:
        raise ValueError(
            f"expected probabilities (N, C), labels (N,) and at least one bin, not {tuple(probabilities.shape)}, "
            f"{tuple(labels.shape)} and {bins}"
        )
    confidence, guess = probabilities.double().max(1)
    where = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=probabilities.device)
    gap.index_add_(0, where, (guess == labels).double() - confidence)
    return float(gap.abs().sum() / len(labels))
