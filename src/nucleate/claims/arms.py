"""Experiments that claims of several sections share, and what is common to all: spec of a tier, seeds, margin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nucleate.claims.claim import Tier
from nucleate.recipes.collapse import recipe
from nucleate.spec import CollapseSpec, MeasureSpec

Arm = Callable[[Tier], Any]
"""Tier -> spec of an experiment; the trial sets its seed."""

SEEDS = {"quick": 10, "full": 5}
"""Seeds of a tier; they count from 0. Numbers were calibrated on seeds from 100."""

MARGIN = {"quick": 0.010, "full": 0.003}
"""Accuracy that counts as no difference: one point, and 0.3 points."""

WEAK_DECAY = 1e-5


def main(tier: Tier) -> CollapseSpec:
    """The network whose collapse is watched, at its recipe's own weight decay."""
    if tier == "full":
        return recipe("mnist-mlp")
    spec = recipe("digits-mlp")
    return replace(
        spec,
        model=replace(spec.model, width=128),
        train=replace(spec.train, weight_decay=3e-3, epochs=80, threads=1),
        measure=replace(spec.measure, points=5, robustness=200, subsample=360),
    )


def weak_decay(tier: Tier) -> CollapseSpec:
    """The same with next to no weight decay."""
    spec = main(tier)
    return replace(spec, train=replace(spec.train, weight_decay=WEAK_DECAY), measure=bare(spec.measure))


def bare(measure: MeasureSpec) -> MeasureSpec:
    """Only the start, zero error and the end, without attacks."""
    return replace(measure, points=2, robustness=0, subsample=360)


ARMS: dict[str, Arm] = {"main": main, "weak-decay": weak_decay}
