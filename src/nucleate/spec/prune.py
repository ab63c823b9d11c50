"""Spec of pruning one trained network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.compare import PruneSpec
from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec


@dataclass(frozen=True, kw_only=True)
class PruneRunSpec:
    """Prune a trained network to a density, or as far as a largest loss of the measure allows."""

    study: Literal["prune"] = "prune"
    recipe: str = "own"
    seed: int = 0
    """Seed of what the method draws, of the validation points and of the data order."""
    weights: str = ""
    """File of trained weights: .safetensors, .pt, .pth or .bin."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=lambda: TrainSpec(lr=0.01, schedule="constant"))
    """How it is trained on after pruning; `prune.epochs` and `prune.lr` say how long and how fast."""
    prune: PruneSpec = field(default_factory=PruneSpec)
    density: float | None = None
    """Kept share of the prunable weights."""
    largest_loss: float | None = None
    """Instead of a density: how much worse the measure may become on validation points; 0.01 is a point of accuracy."""
    metric: str = "accuracy"
    """accuracy, or `package.module:function` called with (outputs, labels), a float over all points."""
    better: Literal["higher", "lower"] = "higher"
    """Whether a larger value of the measure is better."""
    validation: float = 0.1
    """Share of the training points on which a largest loss is judged; they are not trained on."""
