"""Spec of the connectivity study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec
from nucleate.spec.tickets import LadderSpec


@dataclass(frozen=True, kw_only=True)
class ConnectivitySpec:
    """Two copies of one network, trained on with different noise from step k, and the line between them."""

    study: Literal["connectivity"] = "connectivity"
    recipe: str = "digits-lenet"
    seed: int = 0
    """Seed of the initial weights and of the noise up to step k; the copies' noise comes from it too."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    steps: tuple[int, ...] = (0,)
    """Steps k from which the copies part."""
    levels: tuple[int, ...] = (0,)
    """Levels of the ladder whose networks are examined; 0 is the dense one. Tickets are rewound to each k."""
    points: int = 31
    """Networks on the line, the two ends included."""
    ladder: LadderSpec = field(default_factory=LadderSpec)
    """How tickets are found; its controls are not trained."""
