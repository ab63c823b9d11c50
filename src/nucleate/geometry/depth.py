"""Effective depth: from which layer on nearest class means already classify."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EffectiveDepth:
    """Indices into the layers in depth order; None where the error is never that small."""

    first: int | None
    """First layer whose nearest-mean error is at most eps."""
    lasting: int | None
    """First layer from which on it stays at most eps, to the last layer."""
    eps: float


def effective_depth(errors: Sequence[float], *, eps: float = 0.0) -> EffectiveDepth:
    """First layer at which the nearest-class-mean error is at most eps, and first from which it stays so.

    Args:
        errors: 1 - ncc_accuracy of every layer, in depth order, all of one split; nan counts as too large.
        eps: error allowed; the depth means nothing without it and the split.

    Raises:
        ValueError: for a negative eps or an error outside [0, 1].

    >>> effective_depth([0.5, 0.01, 0.2, 0.0, 0.01], eps=0.02)
    EffectiveDepth(first=1, lasting=3, eps=0.02)

    (Galanti, Galanti, Ben-Shaul 2022.)
    """
    if eps < 0:
        raise ValueError(f"eps is an error rate, not {eps}")
    for index, error in enumerate(errors):
        if not (math.isnan(error) or 0 <= error <= 1):
            raise ValueError(f"the error of layer {index} must lie in 0..1, not {error}")
    reached = [error <= eps for error in errors]
    lasting = len(reached)
    while lasting and reached[lasting - 1]:
        lasting -= 1
    return EffectiveDepth(
        first=reached.index(True) if any(reached) else None,
        lasting=lasting if lasting < len(reached) else None,
        eps=eps,
    )
