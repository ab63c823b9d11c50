"""Spec of the collapse study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Suppress

from nucleate.spec.parts import DataSpec, MeasureSpec, ModelSpec, TrainSpec


@dataclass(frozen=True, kw_only=True)
class CollapseSpec:
    """Train into the terminal phase and measure every layer on the way."""

    study: Suppress[Literal["collapse"]] = "collapse"
    recipe: Suppress[str] = "digits-mlp"
    """Name of what was run; part of the run folder's name."""
    seed: int = 0
    """Seed of the initial weights and of the data order."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    measure: MeasureSpec = field(default_factory=MeasureSpec)
