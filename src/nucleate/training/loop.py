"""A plain training loop: a generator that hands over after every epoch.

An epoch is a function of the state before it, the seed and its number, and of nothing else: the data order and what
the network draws (dropout, say) come from (seed, epoch), so a training that is killed and resumed from any epoch's
state ends in the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.machine.batches import points_at_once
from nucleate.machine.devices import check_device
from nucleate.machine.tuning import Tuning, tuned
from nucleate.pruning.masks import Masks
from nucleate.spec import TrainSpec
from nucleate.training import parallel, state
from nucleate.training.draws import seeded
from nucleate.training.objective import loss_of as loss_of
from nucleate.training.objective import make_optimizer as make_optimizer
from nucleate.training.survivors import Survivors, survivors

FIT_BATCH = 256
"""Points that are asked together whether they fit: few, for the first that does not ends the question."""


class Diverged(ValueError):
    """A training whose loss is no longer finite."""


@dataclass(frozen=True)
class Epoch:
    """What the loop knows at the end of an epoch (epoch 0: before the first step)."""

    number: int
    step: int
    loss: float
    """Mean training loss over the epoch's steps; nan at epoch 0."""


@dataclass
class Training:
    """A model being trained on tensors in memory.

    `for epoch in training:` runs it to the end; `state()` and `load()` save and restore it between two epochs.

    Raises:
        ValueError: if there are no points, or the spec's numbers make no training.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    num_classes: int
    spec: TrainSpec
    tuning: Tuning
    seed: int = 0
    masks: Mapping[str, Tensor] | None = None
    """By parameter name: 1 keeps a weight, 0 holds it at zero from before the first step."""
    epoch: int = 0
    step: int = 0
    started: bool = False
    optimizer: torch.optim.Optimizer = field(init=False)
    _hard: list[int] = field(default_factory=list, init=False)
    """Parts of the training points that held errors when `fits` last read them, the latest first."""

    def __post_init__(self) -> None:
        check(self.spec)
        if len(self.inputs) == 0:
            raise ValueError("there is no training point")
        self.model.to(self.spec.device)
        if self.tuning.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parallel.share_norms(self.model)
        self.inputs = self.inputs.to(self.spec.device)
        self.labels = self.labels.to(self.spec.device)
        self.optimizer = make_optimizer(self.model, self.spec, fused=self.tuning.fused)
        self._masked = [
            (self.model.get_parameter(name), mask.to(self.model.get_parameter(name)))
            for name, mask in (self.masks or {}).items()
        ]
        self._mask()
        self._survivors: Survivors | None = None
        if self.spec.sparse and parallel.ranks() == 1:
            self._survivors = survivors(
                self.model,
                Masks(self.masks),
                self.inputs,
                self.labels,
                self.num_classes,
                self.spec,
                self.tuning,
            )

    def __iter__(self) -> Iterator[Epoch]:
        """Yield epoch 0 (unless resumed past it), then run and yield one epoch after another."""
        if not self.started:
            self.started = True
            yield Epoch(number=0, step=0, loss=math.nan)
        while self.epoch < self.spec.epochs:
            loss = self._run_epoch()
            yield Epoch(number=self.epoch, step=self.step, loss=loss)

    def _run_epoch(self) -> float:
        lr = learning_rate(self.spec, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.inputs.device)
        # Each process drops units of its own part of a batch.
        drawn = seeded(self.seed, f"epoch {self.epoch}, rank {parallel.rank()}", self.inputs.device)
        with tuned(self.tuning), drawn:
            parts = batches(len(self.inputs), self.spec.batch_size, seed=self.seed, epoch=self.epoch)
            # One transfer an epoch: a step waits for nothing that the host has to send.
            order = torch.cat(parts).to(self.inputs.device)
            if self._survivors is not None:
                self._survivors.begin()
                for batch in order.split([len(p) for p in parts]):
                    total += self._survivors.step(self.inputs, self.labels, batch, lr) * len(batch)
                self._survivors.end()
                order, parts, self.step = order[:0], [], self.step + len(parts)
            for batch in order.split([len(p) for p in parts]):
                index = parallel.part(batch)
                inputs, labels = self.inputs[index], self.labels[index]
                if self.tuning.channels_last and inputs.ndim == 4:
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                with self._autocast():
                    outputs = self.model(inputs)
                if self.tuning.bf16:
                    outputs = outputs.float()
                loss = loss_of(outputs, labels, self.spec.loss, self.num_classes)
                if len(index) < len(batch):
                    loss = loss * (len(index) / len(batch)) if len(index) else outputs.sum() * 0
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                parallel.total_gradients(self.model)
                self.optimizer.step()
                self._mask()
                total += loss.detach() * len(batch)
                self.step += 1
        self.epoch += 1
        mean = float(parallel.total(total)) / len(self.inputs)
        if not math.isfinite(mean):
            raise Diverged(
                f"the training loss became {mean} in epoch {self.epoch}: lower the learning rate ({self.spec.lr:g})"
            )
        return mean

    @torch.no_grad()
    def _mask(self) -> None:
        for parameter, mask in self._masked:
            parameter.mul_(mask)

    def _autocast(self) -> Any:
        if not self.tuning.bf16:
            return nullcontext()
        return torch.autocast(self.inputs.device.type, dtype=torch.bfloat16)

    def fits(self) -> bool:
        """Training error in eval mode at or below the floor; stops at the first error too many.

        Begins with the points where it last found errors: what is hard stays hard, so a network that does not fit is
        mostly found out by one batch.
        """
        allowed = self.spec.error_floor * self.labels.numel()
        errors = 0
        training = self.model.training
        self.model.eval()
        points = min(FIT_BATCH, points_at_once(self.model))
        parts = list(zip(self.inputs.split(points), self.labels.split(points), strict=True))
        with torch.no_grad(), tuned(self.tuning):
            hard = set(self._hard)
            for number in [*self._hard, *(i for i in range(len(parts)) if i not in hard)]:
                inputs, labels = parts[number]
                outputs = self.model(inputs) if self._survivors is None else self._survivors.logits(inputs)
                found = int((outputs.argmax(-1) != labels).sum())
                errors += found
                if number in hard and not found:
                    self._hard.remove(number)
                elif number not in hard and found:
                    self._hard.insert(0, number)
                if errors > allowed:
                    break
        self.model.train(training)
        return errors <= allowed

    def state(self, **notes: Any) -> bytes:
        """Everything that the next epoch depends on, and the caller's own JSON-able notes."""
        if self._survivors is not None:
            self._survivors.give_state(self.optimizer)
        return state.pack(self.model, self.optimizer, epoch=self.epoch, step=self.step, notes=notes)

    def load(self, content: bytes) -> dict[str, Any]:
        """Go on from a state; returns the caller's notes."""
        own = state.unpack(content, self.model, self.optimizer)
        if self._survivors is not None:
            self._survivors.begin()
            self._survivors.take_state(self.optimizer)
        self.epoch, self.step, self.started = own["epoch"], own["step"], True
        notes: dict[str, Any] = own["notes"]
        return notes


def check(spec: TrainSpec) -> None:
    """Refuse a spec that makes no training.

    Raises:
        ValueError: with the field, what was given and what it must be.
    """
    for name in ("lr", "epochs", "batch_size", "threads"):
        value = getattr(spec, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"train.{name} must be a number above 0, not {value}")
    if not 0 <= spec.error_floor < 1:
        raise ValueError(f"train.error_floor must be in [0, 1), not {spec.error_floor}")
    if not 0 <= spec.weight_decay < math.inf:
        raise ValueError(f"train.weight_decay must be a number from 0 on, not {spec.weight_decay}")
    if not 0 <= spec.momentum < 1:
        raise ValueError(f"train.momentum must be in [0, 1), not {spec.momentum}")
    if spec.sparse and spec.device != "cpu":
        raise ValueError(f"train.sparse trains on the CPU, not on {spec.device}: on a GPU shrink the network instead")
    check_device(spec.device, "train.device")


def learning_rate(spec: TrainSpec, epoch: int) -> float:
    """Learning rate of an epoch (counted from 0).

    >>> [learning_rate(TrainSpec(lr=1.0, epochs=9), e) for e in (0, 3, 6)]
    [1.0, 0.1, 0.01]
    """
    if spec.schedule == "steps":
        passed = (epoch >= spec.epochs // 3) + (epoch >= 2 * spec.epochs // 3) if spec.epochs >= 3 else 0
        return spec.lr / 10.0**passed
    if spec.schedule == "cosine":
        return spec.lr * 0.5 * (1 + math.cos(math.pi * epoch / spec.epochs))
    return spec.lr


def batches(size: int, batch_size: int, *, seed: int, epoch: int) -> list[Tensor]:
    """Shuffled index batches of an epoch; a last batch of one point joins its neighbour (batch norm needs two).

    >>> [len(b) for b in batches(9, 4, seed=0, epoch=0)]
    [4, 5]
    """
    # torch's CPU generator takes 32 bits of its seed, so the two numbers are mixed into as many.
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    parts = list(torch.randperm(size, generator=generator).split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
