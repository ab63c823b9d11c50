"""The experiments behind the claims: name -> spec, for a tier and a seed. Claims share them, so each runs once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.claims.claim import Tier
from nucleate.recipes import recipe
from nucleate.spec import CollapseSpec, DataSpec, MeasureSpec, ModelSpec, TrainSpec

SEEDS = {"quick": 10, "full": 5}
"""Seeds of a tier; they count from 0. Numbers were calibrated on seeds from 100."""

WIDTHS = (2, 4, 8, 16, 32, 64, 128)
"""Widths of the single hidden layer on which cells are counted."""

WEAK_DECAY = 1e-5


def main(tier: Tier) -> CollapseSpec:
    """The network whose collapse is watched, at its recipe's own weight decay."""
    if tier == "full":
        return recipe("mnist-mlp")
    spec = recipe("digits-mlp")
    return replace(
        spec,
        model=replace(spec.model, width=128),
        train=replace(spec.train, weight_decay=3e-3, epochs=120, threads=1),
        measure=replace(spec.measure, points=5, robustness=200, subsample=360),
    )


def weak_decay(tier: Tier) -> CollapseSpec:
    """The same with next to no weight decay."""
    spec = main(tier)
    return replace(spec, train=replace(spec.train, weight_decay=WEAK_DECAY), measure=_bare(spec.measure))


def superclasses(tier: Tier) -> CollapseSpec:
    """A task with coarse groups and fine classes, whose input holds next to no neighbours of one class."""
    return CollapseSpec(
        recipe="superclasses-mlp",
        data=DataSpec(name="superclasses"),
        model=ModelSpec(width=128 if tier == "quick" else 512, depth=5, batchnorm=True),
        train=TrainSpec(lr=0.1, weight_decay=5e-4, schedule="cosine", epochs=12 if tier == "quick" else 60, threads=1),
        measure=MeasureSpec(points=2, robustness=0, subsample=1000),
    )


def _width(width: int) -> Callable[[Tier], CollapseSpec]:
    def one_hidden_layer(tier: Tier) -> CollapseSpec:
        spec = main(tier)
        return replace(
            spec,
            recipe=f"{spec.recipe}-{width}",
            model=ModelSpec(width=width, depth=1),
            train=replace(spec.train, lr=0.05, weight_decay=1e-4, epochs=12, threads=1),
            measure=_bare(spec.measure),
        )

    return one_hidden_layer


def _bare(measure: MeasureSpec) -> MeasureSpec:
    return replace(measure, points=2, robustness=0, subsample=360)


ARMS: dict[str, Callable[[Tier], CollapseSpec]] = {
    "main": main,
    "weak-decay": weak_decay,
    "superclasses": superclasses,
    **{f"width-{w}": _width(w) for w in WIDTHS},
}
