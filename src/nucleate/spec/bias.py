"""What the bias study runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec


@dataclass(frozen=True, kw_only=True)
class BiasSpec:
    """Where gradient descent goes by itself, on four small problems whose answer is known."""

    study: Literal["bias"] = "bias"
    recipe: str = "min-norm"
    problem: Literal["min-norm", "max-margin", "edge", "depth"] = "min-norm"
    """min-norm: least squares; max-margin: separable points; edge: sharpness of a network; depth: low-rank matrices."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Problems (points, starts) drawn anew for each seed."""
    data: DataSpec = field(default_factory=lambda: DataSpec(train_size=200))
    """Points of the edge; the other problems draw their own."""
    steps: int = 4000
    """Steps of gradient descent; of the edge, at its smallest rate: the others take as many times rate."""
    points: int = 12
    """Log-spaced steps (edge: even ones) at which is measured."""
    rates: tuple[float, ...] = (0.08, 0.12, 0.16)
    """Learning rates of the edge."""
    width: int = 50
    """Units of each of the two hidden layers of the edge."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Factors of the matrix of the depth problem."""
    threads: int | None = None
    """Threads of the run; as many as cores if none."""
