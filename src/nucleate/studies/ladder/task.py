"""What the networks of a ladder are trained on, and one training: where it starts and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.data import Dataset
from nucleate.data.sources import generator
from nucleate.pruning.masks import Masks
from nucleate.spec import TrainSpec
from nucleate.training.held import HeldOut
from nucleate.training.rewind import RewindPoint


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Training, validation and test points."""

    inputs: Tensor
    labels: Tensor
    validation: HeldOut
    validation_labels: Tensor
    test: HeldOut
    test_labels: Tensor
    num_classes: int

    @classmethod
    def of(cls, data: Dataset, validation: int, seed: int) -> Task:
        """Hold `validation` random training points out; the same ones for every seed of a study.

        Raises:
            ValueError: if that leaves no training or no validation point.
        """
        size = len(data.train_labels)
        if not 0 < validation < size:
            raise ValueError(f"ladder.validation must be between 1 and {size - 1} of the training points: {validation}")
        order = torch.randperm(size, generator=generator(seed, "validation"))
        held, kept = order[:validation].sort().values, order[validation:].sort().values
        return cls(
            inputs=data.train_inputs[kept],
            labels=data.train_labels[kept],
            validation=HeldOut(data.train_inputs[held]),
            validation_labels=data.train_labels[held],
            test=HeldOut(data.test_inputs),
            test_labels=data.test_labels,
            num_classes=data.num_classes,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One training."""

    arm: str
    level: int
    seed: int
    model: nn.Module
    """A network of its own, with the weights from which it starts."""
    masks: Masks
    spec: TrainSpec
    start: RewindPoint | None = None
    """Full state to go on from; a fresh optimizer at step 0 if none."""
    keep: int | None = None
    """Step whose full state is kept."""
    told: tuple[int, ...] = ()
    """Epochs at which the training is judged as if it ended there; the last one if empty."""

    @property
    def horizons(self) -> tuple[int, ...]:
        """Epochs at which the training is judged."""
        return self.told or (self.spec.epochs,)


@dataclass(eq=False)
class Outcome:
    """What came of a training: its curve, and the test points it got right at the validation minimum and at the end."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    judged: dict[int, Judged] = field(default_factory=dict)
    """By horizon in epochs."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """State dict at the end."""
    kept: RewindPoint | None = None
    end: RewindPoint | None = None
    seconds: float = 0.0
    """Processor seconds of training steps alone."""
    evaluating: float = 0.0
    """Processor seconds of evaluations."""
    best: np.ndarray[Any, Any] | None = None
    """uint8 (test points,): right at the smallest validation loss so far."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """State dict there, where test points are looked at only when a horizon is reached."""

    def see(self, step: int, logits: Tensor, labels: Tensor) -> bool:
        """Add an evaluation; whether its loss is the smallest so far."""
        loss = float(F.cross_entropy(logits.double(), labels))
        smallest = not self.losses or loss < min(self.losses)
        self.steps.append(step)
        self.losses.append(loss)
        self.accuracies.append(float((logits.argmax(1) == labels).double().mean()))
        return smallest

    def judge(self, horizon: int, last: np.ndarray[Any, Any]) -> None:
        """Close the books at a horizon, given which test points are right now."""
        assert self.best is not None
        at = int(np.argmin(self.losses))
        self.judged[horizon] = Judged(
            step=self.steps[-1],
            stop=self.steps[at],
            censored=at == len(self.steps) - 1,
            loss=self.losses[at],
            correct=self.best,
            correct_end=last,
        )


@dataclass(frozen=True, eq=False)
class Judged:
    """A training as seen from one horizon."""

    step: int
    """Step of the horizon."""
    stop: int
    """Step of the smallest validation loss, found afterwards; the earliest if several share it."""
    censored: bool
    """Whether that is the last evaluation, so that the minimum may lie beyond the horizon."""
    loss: float
    correct: np.ndarray[Any, Any]
    """uint8 (test points,) at that step."""
    correct_end: np.ndarray[Any, Any]
    """uint8 (test points,) at the horizon."""


def right(logits: Tensor, labels: Tensor) -> np.ndarray[Any, Any]:
    """uint8 (N,): which points are classified right.

    >>> right(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])).tolist()
    [1, 0]
    """
    return (logits.argmax(1) == labels).to(torch.uint8).numpy()
