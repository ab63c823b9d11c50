"""Spec of the prune-stability study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec


@dataclass(frozen=True, kw_only=True)
class StabilitySpec:
    """What is pruned, how and when, while a network trains: one arm for each combination."""

    density: float = 0.3
    """Kept share of the hidden layers' weights at the end, in every arm."""
    methods: tuple[str, ...] = ("magnitude", "snip")
    """Scores by which weights are small or large: names that `nucleate.scores` takes."""
    targets: tuple[Literal["small", "random", "large"], ...] = ("small", "random", "large")
    """What goes: the smallest scores, the largest, or weights drawn at random (which no score changes)."""
    shapes: tuple[Literal["weight", "unit"], ...] = ("weight", "unit")
    """Single weights, or units with all that they receive."""
    events: tuple[int, ...] = (1, 4, 12)
    """Numbers of events over which the pruning is spread: many small ones, or few large ones."""
    start: int = 4
    """Epoch of the first event, where there are several."""
    end: int = 30
    """Epoch of the last event, the same in every arm: the training after it is, too."""
    noise: tuple[Literal["zero", "gauss"], ...] = ("zero", "gauss")
    """Controls that prune nothing: at the events of the arms with random targets, as many weights are set to zero, or
    moved by a normal number of their layer's deviation, and go on training."""
    validation: int = 240
    """Training points held out; drops of accuracy are taken on them, generalisation on the test points."""


@dataclass(frozen=True, kw_only=True)
class PruneStabilitySpec:
    """Does pruning that disturbs a network more make it generalise better? (Bartoldson et al. 2020)."""

    study: Literal["prune_stability"] = "prune_stability"
    recipe: str = "digits"
    seed: int = 0
    """First seed of the initial weights, the data order and what is drawn."""
    seeds: int = 10
    """Seeds from `seed` on, trained side by side with all their arms."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    stability: StabilitySpec = field(default_factory=StabilitySpec)
