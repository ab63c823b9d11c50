"""Spec of the capacity study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec


@dataclass(frozen=True, kw_only=True)
class CapacitySpec:
    """How few directions of a large network's weights are enough to train in (Li et al. 2018)."""

    study: Literal["capacity"] = "capacity"
    recipe: str = "digits-lenet"
    seed: int = 0
    """Seed of the initial weights, of the subspaces and of the data order."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    """How coordinates in a subspace are trained."""
    dense_lr: float = 1e-3
    """Learning rate of the whole network, which all are compared with."""
    dimensions: tuple[int, ...] = (10, 30, 100, 300, 600)
    """Dimensions of the subspaces; a mask subspace trains that many of the weights."""
    mixing: int = 4
    """Coordinates that move each weight of a random subspace."""
