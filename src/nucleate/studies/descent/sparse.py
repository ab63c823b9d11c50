"""The sparsity axis: what of a network stays at each density, and where its curve turns (He et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nucleate.data.sources import generator
from nucleate.pruning.masks import Masks
from nucleate.pruning.select import select
from nucleate.studies.ladder.masks import prunable, random_masks

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
    """Sparsest density up to which the error stays within a point of the dense network's."""
    peak: float
    """Top of the bump, where the critical phase ends."""
    sweet: float
    """Lowest error after it; sparser networks collapse."""


def phases(curve: Mapping[float, float]) -> Phases:
    """Phases of a curve, test error by density.

    The peak and the sweet spot are the pair, in order of falling density, between which the error falls most; there are
    none where it falls by no more than a point.

    >>> phases({1.0: 0.19, 0.3: 0.195, 0.1: 0.25, 0.03: 0.17, 0.01: 0.3})
    Phases(light=0.3, peak=0.1, sweet=0.03)
    >>> phases({1.0: 0.02, 0.1: 0.021, 0.03: 0.05, 0.01: 0.1})
    Phases(light=0.1, peak=nan, sweet=nan)
    """
    order = sorted(curve, reverse=True)
    errors = [curve[d] for d in order]
    pairs = [(errors[i] - errors[j], i, j) for i in range(len(order)) for j in range(i + 1, len(order))]
    fall, peak, sweet = max(pairs, key=lambda p: p[0], default=(0.0, 0, 0))
    bump = fall > FLAT
    flat = _flat(errors[: peak + 1] if bump else errors)
    return Phases(order[flat], order[peak] if bump else math.nan, order[sweet] if bump else math.nan)


def _flat(errors: Sequence[float]) -> int:
    """Index up to which all errors are within a point of the first."""
    return next((i for i, e in enumerate(errors) if abs(e - errors[0]) > FLAT), len(errors)) - 1
