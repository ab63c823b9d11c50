"""Spec of the capacity study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec
from nucleate.spec.tickets import LadderSpec


@dataclass(frozen=True, kw_only=True)
class CapacitySpec:
    """Why a large network: tickets of equal size from parents of growing width, and training in few directions."""

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
    """Dimensions of the subspaces (Li et al. 2018); a mask subspace trains that many of the weights; none if empty."""
    mixing: int = 4
    """Coordinates that move each weight of a random subspace."""
    parents: tuple[int, ...] = ()
    """Widths of networks from which tickets are cut, all of `weights` weights; none if empty."""
    weights: int = 1000
    """Weights that the tickets keep; dense networks of as many are trained beside them, for equally many steps and for
    the compute of the whole ladder."""
    ladder: LadderSpec = field(default_factory=LadderSpec)
    """How tickets are found, where `rounds` is that of a parent: as many as keep about four fifths each, at rates that
    end at `weights`, the output layer losing half the share of the others."""
