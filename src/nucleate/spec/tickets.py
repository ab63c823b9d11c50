"""Spec of the tickets study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec

Control = Literal[
    "reinit",
    "random",
    "layer-shuffle",
    "global-shuffle",
    "inverted",
    "one-shot",
    "one-shot-longer",
    "dense-longer",
    "dense-small",
    "dense-small-longer",
]


@dataclass(frozen=True, kw_only=True)
class LadderSpec:
    """How a network is pruned, level by level, and what its tickets are compared with."""

    rounds: int = 10
    """Rounds of pruning; level 0 is the dense network."""
    method: str = "magnitude"
    """Score by which weights stay, taken of the trained network: a name that `nucleate.scores` takes."""
    scope: Literal["layer", "global"] = "layer"
    """layer: each layer loses its own share; global: scores are compared between all layers."""
    remove_conv: float = 0.2
    """Share of its remaining weights that a convolution loses in a round (scope layer)."""
    remove_dense: float = 0.2
    """Share of its remaining weights that a linear map loses in a round; of all weights in scope global."""
    remove_output: float = 0.1
    """Share of its remaining weights that the output layer loses in a round (scope layer)."""
    after: Literal["reset", "lr-rewind", "fine-tune"] = "reset"
    """reset: back to the state of `rewind_step`; lr-rewind: trained weights, schedule from its start, fresh optimizer;
    fine-tune: trained weights, last learning rate, optimizer as it was."""
    rewind_step: int = 0
    """Step whose full state a reset goes back to; 0 is the initialisation."""
    every: int = 100
    """Steps between evaluations; networks that are trained stacked are evaluated after every epoch."""
    validation: int = 5000
    """Training points that are held out; the iteration of minimum loss is found on them."""
    controls: tuple[Control, ...] = ("reinit", "random")
    """What is trained beside the tickets."""
    control_levels: tuple[int, ...] = ()
    """Levels at which controls are trained; all if empty."""
    one_shot_levels: tuple[int, ...] = ()
    """Levels at which the one-shot controls are trained, if not at those of the others."""
    at_init: tuple[str, ...] = ()
    """Scores by which the untrained network is pruned too, globally, to the ticket's number of weights."""
    ablations: bool = False
    """Each mask of `at_init` also shuffled within layers, and with fresh weights (Frankle et al. 2021)."""
    critical: bool = False
    """Also find the density at which each score of `at_init` first leaves a layer empty."""


@dataclass(frozen=True, kw_only=True)
class TicketsSpec:
    """Find tickets: train, prune, rewind, train again, beside controls (Frankle, Carbin 2019)."""

    study: Literal["tickets"] = "tickets"
    recipe: str = "digits-lenet"
    seed: int = 0
    """Seed of the initial weights, of the data order and of what controls draw."""
    seeds: int = 1
    """Seeds from `seed` on that are trained in one run, stacked where the network is a small multi-layer perceptron."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    ladder: LadderSpec = field(default_factory=LadderSpec)
