"""The sparsity axis: what of a network stays at each density, and where its curve turns (He et al. 2022)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nucleate.data.sources import generator
from nucleate.pruning.masks import Masks
from nucleate.pruning.select import select
from nucleate.studies.ladder.masks import prunable, random_masks
from nucleate.studies.ladder.verdict import interval

TICKET, RANDOM, REINIT = "ticket", "random", "reinit"

FLAT = 0.01
"""Test error that counts as no change: one point."""


def masks_at(model: nn.Module, density: float, arm: str, trained: Mapping[str, Tensor], seed: int) -> Masks:
    """Masks that keep round(density x weights): the largest of `trained`, over all layers, ties by index.

    `trained` are the weights at the end of the density before, zero where they were pruned, so that masks are nested.
    The random control keeps as many of every layer.
    """
    found = select({name: trained[name].abs() for name in prunable(model)}, density, allow_empty=True)
    return random_masks(found, generator(seed, f"random mask {density:g}")) if arm == RANDOM else found


@dataclass(frozen=True)
class Phases:
    """Densities at which a curve of test error along falling density turns; nan for what is not there."""

    light: float
    """Sparsest density up to which the error is like the whole network's."""
    peak: float
    """Top of the bump, where the critical phase ends."""
    sweet: float
    """Lowest error after it; sparser networks collapse."""


def phases(curve: Mapping[float, Sequence[float]]) -> Phases:
    """Phases of a curve: test errors by density, of each seed in the same order, the whole network's at density 1.

    Light: the mean is within a point of the whole network's, or the 95 % interval of the difference, paired over seeds,
    includes 0. The peak and the sweet spot are the pair, in order of falling density, between which the mean falls
    most; there are none where it falls by no more than a point.

    >>> phases({1.0: [0.19], 0.3: [0.195], 0.1: [0.25], 0.03: [0.17], 0.01: [0.3]})
    Phases(light=0.3, peak=0.1, sweet=0.03)
    >>> phases({1.0: [0.02], 0.1: [0.021], 0.03: [0.05], 0.01: [0.1]})
    Phases(light=0.1, peak=nan, sweet=nan)
    """
    order = sorted(curve, reverse=True)
    errors = {d: sum(curve[d]) / len(curve[d]) for d in order}
    fall, peak, sweet = max(
        ((errors[a] - errors[b], a, b) for a, b in itertools.combinations(order, 2)),
        key=lambda found: found[0],
        default=(0.0, math.nan, math.nan),
    )
    if fall <= FLAT:
        peak = sweet = math.nan
    # Beyond the peak an error that is like the whole network's again belongs to another phase.
    before = order if math.isnan(peak) else order[: order.index(peak) + 1]
    light = list(itertools.takewhile(lambda d: _alike(curve[d], curve[order[0]]), before))
    return Phases(light[-1], peak, sweet)


def _alike(errors: Sequence[float], whole: Sequence[float]) -> bool:
    low, mean, high = interval([a - b for a, b in zip(errors, whole, strict=True)])
    return abs(mean) <= FLAT or low <= 0 <= high
