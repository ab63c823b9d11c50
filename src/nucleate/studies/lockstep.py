"""Many trainings, an epoch of each in turn: stacked where that pays, alone where it does not; the face of a `Stack`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nucleate.machine.batches import points_at_once
from nucleate.machine.tuning import Tuning, tuned
from nucleate.training import Replica, Stack, StackEpoch, Training, plan_stacks
from nucleate.training.loop import Diverged
from nucleate.training.plan import stackable


class Lockstep:
    """The replicas in the groups that `plan_stacks` makes: a `Stack` of each; networks that are no chains one by one.

    Raises:
        ValueError: if a replica makes no training, or trains for another number of epochs than the others.
    """

    def __init__(self, replicas: Sequence[Replica], inputs: Tensor, num_classes: int, tuning: Tuning) -> None:
        if len({r.spec.epochs for r in replicas}) > 1:
            raise ValueError("trainings in lockstep have the same number of epochs")
        self.groups = plan_stacks(replicas)
        self.parts: list[Stack | _Alone] = [
            Stack([replicas[i] for i in group], inputs, num_classes, tuning)
            if stackable(replicas[group[0]].model)
            else _Alone(replicas[group[0]], inputs, num_classes, tuning)
            for group in self.groups
        ]
        self.places = {
            index: (part, place) for part, group in enumerate(self.groups) for place, index in enumerate(group)
        }
        self.epoch = self.step = 0

    def __iter__(self) -> Iterator[StackEpoch]:
        """Yield epoch 0 (unless resumed past it), then run and yield one epoch after another.

        A network that diverged has weights nan. Where all of a stack did, it ends early; the others go on.
        """
        running = [iter(part) for part in self.parts]
        while True:
            found = [next(part, None) for part in running]
            going = [epoch for epoch in found if epoch is not None]
            if not going:
                return
            self.epoch, self.step = going[0].number, going[0].step
            losses = torch.full((len(self.places),), torch.nan, dtype=torch.float64)
            for group, epoch in zip(self.groups, found, strict=True):
                if epoch is not None:
                    losses[group] = epoch.losses
            yield StackEpoch(self.epoch, self.step, losses)

    def logits(self, inputs: Tensor) -> Tensor:
        """Outputs (R, N, C) of all replicas in eval mode, for inputs (N, ...)."""
        found = [part.logits(inputs) for part in self.parts]
        return torch.stack(
            [found[part][place] for part, place in map(self.places.__getitem__, range(len(self.places)))]
        )

    def state_dict(self, replica: int) -> dict[str, Tensor]:
        """The replica's weights and buffers now: copies."""
        part, place = self.places[replica]
        return self.parts[part].state_dict(place)

    def state(self, **notes: Any) -> bytes:
        """Everything that the next epoch depends on, and the caller's own JSON-able notes."""
        parts = [part.state(**(notes if i == 0 else {})) for i, part in enumerate(self.parts)]
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)

    def load(self, content: bytes) -> dict[str, Any]:
        """Go on from a state of the same replicas; returns the caller's notes."""
        found: list[dict[str, Any]] = []
        for part in self.parts:
            size = int.from_bytes(content[:8], "little")
            found.append(part.load(content[8 : 8 + size]))
            content = content[8 + size :]
        self.epoch, self.step = max((part.epoch, part.step) for part in self.parts)
        return found[0]


class _Alone:
    """A training with the face of a stack of one."""

    def __init__(self, replica: Replica, inputs: Tensor, num_classes: int, tuning: Tuning) -> None:
        self.training = Training(
            replica.model, inputs, replica.labels, num_classes, replica.spec, tuning, replica.seed, replica.masks
        )
        self.state, self.load = self.training.state, self.training.load

    @property
    def epoch(self) -> int:
        return self.training.epoch

    @property
    def step(self) -> int:
        return self.training.step

    def __iter__(self) -> Iterator[StackEpoch]:
        try:
            for epoch in self.training:
                yield StackEpoch(epoch.number, epoch.step, torch.tensor([epoch.loss], dtype=torch.float64))
        except Diverged:
            for parameter in self.training.model.parameters():
                parameter.data.fill_(torch.nan)
            yield StackEpoch(self.epoch, self.step, torch.tensor([torch.nan], dtype=torch.float64))

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        model = self.training.model.eval()
        with tuned(self.training.tuning):
            parts = [model(x.to(self.training.spec.device)).float() for x in inputs.split(points_at_once(model))]
        return torch.cat(parts).unsqueeze(0)

    def state_dict(self, _: int) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.training.model.state_dict().items()}
