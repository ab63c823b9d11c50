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
    """File of trained weights: .safetensors (or sparse), .pt, .pth or .bin; a folder of `transformers` has its own."""
    early: str = ""
    """File of the weights before the last `prune.epochs` epochs of `train`, for prune.after rewind."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=lambda: TrainSpec(lr=0.01, schedule="constant"))
    """How it is trained on after pruning; `prune.epochs` and `prune.lr` say how long and how fast."""
    prune: PruneSpec = field(default_factory=PruneSpec)
    density: float | None = None
    """Kept share of the prunable weights."""
    largest_loss: float | None = None
    """Instead of a density: how much worse the measure may become on validation points; 0.01 is a point of accuracy."""
    target: str = ""
    """Instead of a density: size=200kB, time=1.5ms, speedup=3 or loss=0.01; method, shape and the density of each layer
    are then searched on measured time (or bytes) and measured loss of each layer."""
    methods: tuple[str, ...] = ("magnitude", "taylor")
    """Scores that a target's search tries."""
    shapes: tuple[str, ...] = ("weight", "block:4x1")
    """Shapes that a target's search tries."""
    batch: int = 64
    """Points of the example whose time is measured for a target."""
    metric: str = "accuracy"
    """accuracy, loss (mean cross-entropy, lower is better), or `package.module:function` called with (outputs, labels),
    a float over all points."""
    better: Literal["higher", "lower"] = "higher"
    """Whether a larger value of the measure is better."""
    validation: float = 0.1
    """Share of the training points on which a search judges; they are not trained on."""
