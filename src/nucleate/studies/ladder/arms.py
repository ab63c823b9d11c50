"""The trainings of a level: the ticket, and the controls beside it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.data.sources import generator
from nucleate.models import build
from nucleate.models.build import takes_width
from nucleate.pruning.masks import Masks
from nucleate.pruning.prune import prune
from nucleate.spec import LadderSpec, ModelSpec, TicketsSpec, TrainSpec
from nucleate.studies.ladder import masks as rungs
from nucleate.studies.ladder.task import Job, Task
from nucleate.training.loop import learning_rate
from nucleate.training.rewind import RewindPoint

TICKET = "ticket"
PER_CLASS = 10
"""Training points of each class on which the scores of an untrained network are taken (Tanaka et al. 2020)."""


class Arms:
    """Makes the jobs of a level for one seed: from the dense network's and the level before's trained weights."""

    def __init__(self, spec: TicketsSpec, task: Task, input_shape: tuple[int, ...], seed: int) -> None:
        self.spec, self.task, self.shape, self.seed = spec, task, input_shape, seed
        self.dense = build(spec.model, input_shape, task.num_classes, generator=torch.Generator().manual_seed(seed))
        self.initial = {k: v.clone() for k, v in self.dense.state_dict().items()}
        self.batches = balanced_batches(task)

    def ticket(self, level: int, masks: Masks, before: dict[str, Tensor], point: RewindPoint | None) -> Job:
        """The level's ticket. `before`: trained weights of the level before; `point`: the state to go back to."""
        ladder, train = self.spec.ladder, self.spec.train
        start, weights = point, self.initial
        if ladder.after != "reset" and level:
            start, weights = None, before
            if ladder.after == "fine-tune":
                start = point
                train = replace(train, lr=learning_rate(train, train.epochs - 1), schedule="constant")
        keep = ladder.rewind_step if ladder.rewind_step and not level else None
        return self._job(TICKET, level, masks, weights, start=start, keep=keep, train=train)

    def controls(
        self, level: int, masks: Masks, trained: dict[str, Tensor], point: RewindPoint | None
    ) -> Iterator[Job]:
        """The level's controls. `trained`: the dense network's weights at its end."""
        ladder = self.spec.ladder
        reset = point if ladder.after == "reset" else None

        def drawn(purpose: str) -> torch.Generator:
            return generator(self.seed, f"{purpose} {level}")

        for name in controls_at(ladder, level):
            if name == "reinit":
                fresh = build(self.spec.model, self.shape, self.task.num_classes, generator=drawn("reinit"))
                yield self._job(name, level, masks, fresh.state_dict())
            elif name == "random":
                yield self._job(name, level, rungs.random_masks(masks, drawn(name)), self.initial, start=reset)
            elif name == "layer-shuffle":
                yield self._job(name, level, rungs.layer_shuffle(masks, drawn(name)), self.initial, start=reset)
            elif name == "global-shuffle":
                yield self._job(name, level, rungs.global_shuffle(masks, drawn(name)), self.initial, start=reset)
            elif name == "inverted":
                yield self._job(name, level, rungs.smallest(trained, masks), self.initial, start=reset)
            elif name == "one-shot":
                yield self._job(name, level, rungs.largest(trained, masks), self.initial, start=reset)
            elif name == "one-shot-longer":
                longer = replace(self.spec.train, epochs=level * self.spec.train.epochs)
                yield self._job(name, level, rungs.largest(trained, masks), self.initial, start=reset, train=longer)
            elif name == "dense-small":
                yield self._small(name, level, masks.kept, self.spec.train.epochs)
            elif name == "dense-small-longer":
                yield self._small(name, level, masks.kept, equal_compute_epochs(self.spec, self.dense, level))
        for method in ladder.at_init if _named(ladder.control_levels, level) else ():
            found = self.at_init(method, masks.kept)
            yield self._job(f"{method}-init", level, found, self.initial)
            if ladder.ablations:
                shuffled = rungs.layer_shuffle(found, drawn(f"{method} shuffle"))
                fresh = build(self.spec.model, self.shape, self.task.num_classes, generator=drawn(f"{method} reinit"))
                yield self._job(f"{method}-init-shuffle", level, shuffled, self.initial)
                yield self._job(f"{method}-init-reinit", level, found, fresh.state_dict())

    def longer(self) -> Iterator[Job]:
        """The dense network trained as long as all rounds together were, judged at the budget of each level."""
        ladder, epochs = self.spec.ladder, self.spec.train.epochs
        if "dense-longer" in ladder.controls:
            levels = [n for n in range(1, ladder.rounds + 1) if not ladder.control_levels or n in ladder.control_levels]
            told = tuple((n + 1) * epochs for n in levels)
            train = replace(self.spec.train, epochs=max(told))
            dense = Masks.dense(rungs.prunable(self.dense))
            yield self._job("dense-longer", 0, dense, self.initial, train=train, told=told)

    def at_init(self, method: str, kept: int) -> Masks:
        """Masks by a score of the untrained network, compared between all layers; a layer may lose everything."""
        density = kept / sum(w.numel() for w in rungs.prunable(self.dense).values())
        return prune(
            self._fresh(self.initial),
            method,
            density,
            batches=self.batches,
            include=("output",),
            seed=self.seed,
            allow_empty=True,
        ).masks

    def _small(self, arm: str, level: int, kept: int, epochs: int) -> Job:
        spec = replace(self.spec.model, width=matching_width(self.spec.model, self.shape, self.task.num_classes, kept))
        small = build(spec, self.shape, self.task.num_classes, generator=generator(self.seed, f"dense-small {level}"))
        train, masks = replace(self.spec.train, epochs=epochs), Masks.dense(rungs.prunable(small))
        return self._job(arm, level, masks, small.state_dict(), model=small, train=train)

    def _job(
        self,
        arm: str,
        level: int,
        masks: Masks,
        weights: dict[str, Tensor],
        *,
        model: nn.Module | None = None,
        train: TrainSpec | None = None,
        **rest: Any,
    ) -> Job:
        return Job(
            arm=arm,
            level=level,
            seed=self.seed,
            model=self._fresh(weights) if model is None else model,
            masks=masks,
            spec=train or self.spec.train,
            **rest,
        )

    def _fresh(self, weights: dict[str, Tensor]) -> nn.Module:
        """A network that shares no memory with any other."""
        model = copy.deepcopy(self.dense)
        model.load_state_dict(weights)
        return model


def controls_at(ladder: LadderSpec, level: int) -> list[str]:
    """Controls that are trained at a level.

    >>> ladder = LadderSpec(controls=("reinit", "one-shot"), control_levels=(3,), one_shot_levels=(5,))
    >>> controls_at(ladder, 3), controls_at(ladder, 5)
    (['reinit'], ['one-shot'])
    """
    others, one_shot = ladder.control_levels, ladder.one_shot_levels or ladder.control_levels
    return [name for name in ladder.controls if _named(one_shot if name.startswith("one-shot") else others, level)]


def _named(levels: tuple[int, ...], level: int) -> bool:
    return not levels or level in levels


def equal_compute_epochs(spec: TicketsSpec, model: nn.Module, level: int) -> int:
    """Epochs for which a network of a level's weights is trained with the multiplications of the ladder up to there.

    A step costs in proportion to the weights that are kept: sum over levels of (weights kept) / (weights at the last).

    >>> from nucleate.models.mlp import LeNet
    >>> spec = TicketsSpec(train=TrainSpec(epochs=10))
    >>> equal_compute_epochs(spec, LeNet(784, 10, width=300), 1)  # (266,200 + 213,060) / 213,060
    23
    """
    counts = [rungs.total_count(model, spec.ladder, n) for n in range(level + 1)]
    return math.ceil(spec.train.epochs * sum(counts) / counts[-1])


def matching_width(spec: ModelSpec, shape: tuple[int, ...], classes: int, kept: int) -> int:
    """Width at which the dense network's number of prunable weights is nearest to `kept`.

    Raises:
        ValueError: for a network whose width is no argument.

    >>> matching_width(ModelSpec(name="lenet", width=300), (1, 28, 28), 10, 56_094)
    69
    """
    if not takes_width(spec.name):
        raise ValueError(f"the control dense-small needs a network whose width is an argument, not {spec.name}")

    def size(width: int) -> int:
        model = build(replace(spec, width=width), shape, classes, generator=torch.Generator())
        return sum(w.numel() for w in rungs.prunable(model).values())

    low, high = 1, spec.width
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if size(middle) < kept else (low, middle)
    return min((max(1, low - 1), low), key=lambda w: abs(size(w) - kept))


def balanced_batches(task: Task) -> list[tuple[Tensor, Tensor]]:
    """One batch of the first training points of each class."""
    index = torch.cat([torch.nonzero(task.labels == c).flatten()[:PER_CLASS] for c in range(task.num_classes)])
    return [(task.inputs[index], task.labels[index])]
