"""Specs of a dense training and of the comparison of pruning methods that starts from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """Train a network and keep its weights."""

    study: Literal["dense"] = "dense"
    recipe: str = "digits-mlp"
    seed: int = 0
    """Seed of the initial weights and of the data order."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    keep: tuple[int, ...] = ()
    """Epochs after which the weights are kept too, beside the first and the last."""


@dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """How a trained network is pruned and trained on."""

    method: str = "magnitude"
    """A score by name, sparsegpt, or `package.module:function`."""
    scope: str = "global"
    """global, layer, uniform, erk: between which weights scores are compared."""
    shape: str = "weight"
    """weight, 2:4, block:4x1, unit, channel, head: what is removed as one."""
    layers: tuple[str, ...] = ()
    """Names or patterns of the modules that may lose weights; all prunable ones if empty."""
    schedule: Literal["one-shot", "iterative"] = "one-shot"
    """one-shot: each density from the dense network; iterative: each density from the one before."""
    epochs: int = 0
    """Epochs of training after each pruning; none if 0."""
    after: Literal["fine-tune", "lr-rewind", "rewind"] = "fine-tune"
    """fine-tune: at `lr`; lr-rewind: the last `epochs` of the schedule in `train` again; rewind: from the weights
    before those epochs, too."""
    lr: float = 0.01
    """Learning rate of fine-tuning, constant."""
    examples: int = 512
    """Training points that scores see."""


@dataclass(frozen=True, kw_only=True)
class CompareSpec:
    """Prune a trained network by one method to several densities; a comparison is one such run a method and seed."""

    study: Literal["compare"] = "compare"
    recipe: str = "digits-mlp"
    seed: int = 0
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    prune: PruneSpec = field(default_factory=PruneSpec)
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    """Kept shares of the prunable weights, falling."""
    robustness: int = 500
    """Held-out points on which PGD is tried at each density; 0 for none."""
    epsilon: float = 0.1
    """Radius of PGD, L-infinity, in units of the input's full range."""
    timing: int = 0
    """Batch at which each pruned network is made as fast as it gets and timed, beside the best dense form; 0: not."""
