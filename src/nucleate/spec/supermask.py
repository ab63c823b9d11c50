"""Spec of the supermask study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec


@dataclass(frozen=True, kw_only=True)
class SupermaskSpec:
    """What a random network already contains: subset sums of random candidates, and masks on frozen weights."""

    study: Literal["supermask"] = "supermask"
    recipe: str = "digits-mlp"
    seed: int = 0
    """Seed of the candidates, of the frozen weights and of the data order."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    """How the scores of a mask are trained, and, with `dense_lr`, the network that it is compared with."""
    dense_lr: float = 0.05
    """Learning rate of the trained comparison."""
    candidates: tuple[int, ...] = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
    """Random candidates for each target weight; none to leave the subset sums out."""
    targets: int = 50
    """Evenly spaced target weights in [-1/2, 1/2]."""
    draws: int = 20
    """Sets of candidates for each number of them."""
    widths: tuple[int, ...] = (16, 64, 256)
    """Widths of the frozen networks."""
    densities: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Shares of the frozen weights that a mask keeps, in every layer."""
    weights: Literal["signed-constant", "normal"] = "signed-constant"
    """Law of the frozen weights: +-sigma or normal with deviation sigma, sigma^2 = 2 / (fan-in x density)."""
