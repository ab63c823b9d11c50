"""Networks that cannot be stacked, trained one after another in each epoch: the face of a `Stack`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nucleate.machine.tuning import Tuning, tuned
from nucleate.training import Replica, StackEpoch, Training

BATCH = 1024


class Lockstep:
    """The replicas' trainings, an epoch of each in turn; for networks that a `Stack` refuses (convolutions).

    Raises:
        ValueError: if a replica makes no training.
    """

    def __init__(self, replicas: Sequence[Replica], inputs: Tensor, num_classes: int, tuning: Tuning) -> None:
        self.replicas, self.tuning = tuple(replicas), tuning
        self.trainings = [
            Training(r.model, inputs, r.labels, num_classes, r.spec, tuning, seed=r.seed, masks=r.masks)
            for r in replicas
        ]
        self.epoch = 0

    def __iter__(self) -> Iterator[StackEpoch]:
        """Yield epoch 0 (unless resumed past it), then run and yield one epoch after another."""
        for epochs in zip(*self.trainings, strict=True):
            self.epoch = epochs[0].number
            yield StackEpoch(self.epoch, epochs[0].step, torch.tensor([e.loss for e in epochs], dtype=torch.float64))

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Outputs (R, N, C) of all replicas in eval mode, for inputs (N, ...)."""
        outputs = []
        with tuned(self.tuning):
            for training in self.trainings:
                model = training.model.eval()
                parts = [model(x.to(training.spec.device)).float() for x in inputs.split(BATCH)]
                outputs.append(torch.cat(parts))
        return torch.stack(outputs)

    def state_dict(self, replica: int) -> dict[str, Tensor]:
        """The replica's weights and buffers now: copies."""
        return {k: v.detach().clone() for k, v in self.trainings[replica].model.state_dict().items()}

    def state(self, **notes: Any) -> bytes:
        """Everything that the next epoch depends on, and the caller's own JSON-able notes."""
        parts = [training.state(**(notes if i == 0 else {})) for i, training in enumerate(self.trainings)]
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)

    def load(self, content: bytes) -> dict[str, Any]:
        """Go on from a state of the same replicas; returns the caller's notes."""
        found: list[dict[str, Any]] = []
        for training in self.trainings:
            size = int.from_bytes(content[:8], "little")
            found.append(training.load(content[8 : 8 + size]))
            content = content[8 + size :]
        self.epoch = self.trainings[0].epoch
        return found[0]
