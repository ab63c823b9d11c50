"""Many small networks trained as one batched computation; each does what it would do alone.

A `Replica` is everything that one unstacked `Training` takes: a network with its initial weights, labels, a
`TrainSpec`, the seed of its data order, masks. A `Stack` trains R of them at once on the same inputs:

    replicas = [Replica(model=build(...), labels=noisy[s], spec=spec, seed=s) for s in range(64)]
    stack = Stack(replicas, inputs, num_classes, tuning)
    for epoch in stack:                                # StackEpoch: number, step, losses (R,)
        errors, losses = stack.evaluate(test_inputs, test_labels)
    model.load_state_dict(stack.state_dict(3))         # a plain state dict, without padding

Replicas may differ in initial weights, seed, labels, masks, hidden widths (padded to the widest), learning rate,
momentum, weight decay, schedule and number of epochs. They share inputs, depth, batch size, loss and optimizer. An
epoch is a function of the state before it and nothing else: a stack that is killed and resumed ends in the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.machine.extension import DISABLE
from nucleate.machine.tuning import Tuning, tuned
from nucleate.spec import TrainSpec
from nucleate.training.chain import Chain
from nucleate.training.loop import batches, check, learning_rate
from nucleate.training.objective import targets_of
from nucleate.training.update import Update, stretches

EVAL_POINTS = 1024
"""Points of a chunk of an evaluation, for all replicas at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Replica:
    """One training of a stack."""

    model: nn.Module
    """Network whose weights are where the training starts; it is read, never changed."""
    labels: Tensor
    """int64 (N,), the labels this replica is trained on, or float (N, C): a distribution over classes of each point."""
    spec: TrainSpec
    """How it is trained; `batch_size`, `loss`, `optimizer` and `device` must be those of the stack's other replicas."""
    seed: int = 0
    """Seed of the data order, as in `Training`."""
    masks: Mapping[str, Tensor] | None = None
    """By parameter name: 1 keeps a weight, 0 holds it at zero from before the first step."""


@dataclass(frozen=True, eq=False)
class StackEpoch:
    """What the stack knows at the end of an epoch (epoch 0: before the first step)."""

    number: int
    step: int
    losses: Tensor
    """float64 (R,): mean training loss over the epoch's steps; nan at epoch 0 and for replicas that ended before.

    A replica whose loss is not finite is ended, and its weights become nan; alone it would have been an error.
    """


class Stack:
    """R replicas being trained together. Iterate to train; between two epochs everything can be read.

    Raises:
        ValueError: if the replicas cannot be stacked: networks that are no chains of Linear, BatchNorm1d and ReLU or
            differ in more than hidden widths, specs that differ in batch size, loss, optimizer or device, labels or
            masks of the wrong shape.

    >>> from nucleate.models.mlp import MLP
    >>> inputs, labels = torch.eye(4), torch.tensor([0, 1, 0, 1])
    >>> spec = TrainSpec(epochs=30, batch_size=4, lr=0.5, schedule="constant")
    >>> stack = Stack(
    ...     [Replica(model=MLP(4, 2, width=w, depth=1), labels=labels, spec=spec) for w in (8, 16)],
    ...     inputs, 2, Tuning(threads=1),
    ... )
    >>> for epoch in stack: pass
    >>> stack.evaluate(inputs, labels)[0].tolist()
    [0.0, 0.0]
    >>> stack.state_dict(0)["classifier.weight"].shape
    torch.Size([2, 8])
    """

    def __init__(self, replicas: Sequence[Replica], inputs: Tensor, num_classes: int, tuning: Tuning) -> None:
        _check(replicas, inputs)
        self.replicas, self.num_classes, self.tuning = tuple(replicas), num_classes, tuning
        self.epoch = self.step = 0
        self.started = False
        first = replicas[0]
        device = torch.device(first.spec.device)
        dtype = next(first.model.parameters()).dtype
        self.inputs = inputs.flatten(1).to(device, dtype)
        self.chain = Chain([r.model for r in replicas])
        count, row = len(replicas), self.chain.row
        self.order = list(range(count))
        """Replica at each position; the running ones come first."""
        self.running = count
        self.rows, self.gradients = (torch.zeros(count, row, dtype=dtype, device=device) for _ in range(2))
        slots = 2 if first.spec.optimizer == "adam" else 1
        self.slots = [torch.zeros_like(self.rows) for _ in range(slots)]
        self.statistics = {
            f"{name}.running_{kind}": torch.zeros(count, width, dtype=dtype, device=device)
            for name, width in self.chain.norms.items()
            for kind in ("mean", "var")
        }
        self.targets = torch.stack([targets_of(r.labels.to(device), num_classes).to(dtype) for r in replicas])
        self.masks: Tensor | None = None
        if any(r.masks for r in replicas):
            self.masks = torch.ones_like(self.rows)
        for i, replica in enumerate(replicas):
            state = replica.model.state_dict()
            self.chain.put(self.rows, i, state)
            for name, values in self.statistics.items():
                values[i, : len(state[name])] = state[name].to(values)
            if self.masks is not None and replica.masks:
                self.chain.put(self.masks, i, replica.masks)
        if self.masks is not None:
            self.rows.mul_(self.masks)
        self._steps = [0] * count
        self.update = Update(dtype, device, tuning)
        self._hold()

    def __len__(self) -> int:
        return len(self.replicas)

    def __iter__(self) -> Iterator[StackEpoch]:
        """Yield epoch 0 (unless resumed past it), then run and yield one epoch after another."""
        self._end_due()
        if not self.started:
            self.started = True
            yield StackEpoch(0, 0, torch.full((len(self),), math.nan, dtype=torch.float64))
        while self.running:
            losses = self._run_epoch()
            self._end_due()
            yield StackEpoch(self.epoch, self.step, losses)

    def stop(self, replica: int) -> None:
        """End a replica's training here; its weights stay as they are and it costs nothing any more."""
        position = self.order.index(replica)
        if position >= self.running:
            return
        last = self.running - 1
        for tensor in self._all():
            tensor[[position, last]] = tensor[[last, position]]
        self.order[position], self.order[last] = self.order[last], self.order[position]
        self.running = last
        self._hold()

    def ended(self, replica: int) -> bool:
        """Whether a replica has come to its last epoch, was stopped, or diverged."""
        return self.order.index(replica) >= self.running

    @torch.no_grad()
    def prune(self, replica: int, masks: Mapping[str, Tensor]) -> None:
        """Hold more of a replica's weights at zero, from now on; parameters that are not named keep their masks.

        Raises:
            ValueError: if no replica was given masks at the start.
        """
        if self.masks is None:
            raise ValueError("a stack prunes only where its replicas began with masks; give masks of ones")
        position = self.order.index(replica)
        self.chain.put(self.masks, position, masks)
        self.rows[position].mul_(self.masks[position])

    @torch.no_grad()
    def put(self, replica: int, values: Mapping[str, Tensor]) -> None:
        """Set a replica's parameters, by name."""
        self.chain.put(self.rows, self.order.index(replica), values)

    def masks_of(self, replica: int) -> dict[str, Tensor]:
        """The replica's masks now, of all its parameters; none if no replica has masks."""
        if self.masks is None:
            return {}
        shapes = {name: w.shape for name, w in self.replicas[replica].model.named_parameters()}
        return self.chain.get(self.masks, self.order.index(replica), shapes)

    def state_dict(self, replica: int) -> dict[str, Tensor]:
        """The replica's weights and buffers now, as its network's own state dict: copies, on the network's device."""
        model = self.replicas[replica].model
        own = model.state_dict()
        position = self.order.index(replica)
        values = self.chain.get(self.rows, position, {name: own[name].shape for name in self.chain.slices})
        for name, tensor in self.statistics.items():
            values[name] = tensor[position, : len(own[name])].clone()
        for name in self.chain.norms:
            key = f"{name}.num_batches_tracked"
            values[key] = own[key] + self._steps[replica]
        return {name: values[name].to(own[name].device) for name in own}

    @torch.no_grad()
    def logits(self, inputs: Tensor, replicas: Sequence[int] | None = None) -> Tensor:
        """Outputs (R, N, C) of all replicas, or of those that are named, in eval mode, for inputs (N, ...)."""
        places = self._places() if replicas is None else [self.order.index(r) for r in replicas]
        views = self.chain.views(self.rows[places])
        statistics = {name: value[places] for name, value in self.statistics.items()}
        parts = inputs.flatten(1).to(self.rows).split(EVAL_POINTS)
        with tuned(self.tuning):
            return torch.cat([self.chain.logits(views, statistics, x) for x in parts], 1)

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Error and mean cross-entropy of every replica in eval mode, each float64 (R,) on the CPU; nan if it diverged.

        Args:
            inputs: (N, ...).
            labels: (N,), or (R, N) for labels of each replica's own.
        """
        own = labels.to(self.rows.device).expand(len(self), -1)
        errors, losses = torch.zeros(2, len(self), dtype=torch.float64, device=self.rows.device)
        for start in range(0, len(inputs), EVAL_POINTS):
            z, y = self.logits(inputs[start : start + EVAL_POINTS]), own[:, start : start + EVAL_POINTS]
            errors += torch.where(z.isfinite().all(2), z.argmax(2) != y, math.nan).sum(1)
            losses += F.cross_entropy(z.mT, y, reduction="none").sum(1, dtype=torch.float64)
        return (errors / len(inputs)).cpu(), (losses / len(inputs)).cpu()

    def state(self, **notes: Any) -> bytes:
        """Everything that the next epoch depends on, and the caller's own JSON-able notes."""
        tensors = {"rows": self.rows} | {f"slot.{i}": slot for i, slot in enumerate(self.slots)}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics.items()}
        # Masks may have moved since the start.
        tensors |= {} if self.masks is None else {"masks": self.masks}
        places = self._places()
        header = json.dumps(
            {
                "epoch": self.epoch,
                "step": self.step,
                "steps": self._steps,
                "update": self.update.kernel,
                "notes": notes,
            }
            | {"running": sorted(self.order[: self.running])}
        ).encode()
        return len(header).to_bytes(8, "little") + header + save({k: v[places].cpu() for k, v in tensors.items()})

    def load(self, content: bytes) -> dict[str, Any]:
        """Go on from a state of a stack of the same replicas; returns the caller's notes.

        Raises:
            ValueError: if it was trained by another update kernel than there is here, which would change its bits.
        """
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        theirs, ours = header["update"], self.update.kernel
        if theirs != ours:
            raise ValueError(
                f"this stack was updated by the {theirs} kernel and here there is the {ours} one: go on where it was "
                f"begun ({DISABLE}=1 switches the native one off), or start a new run"
            )
        tensors = load(content[8 + size :])
        for replica in set(range(len(self))) - set(header["running"]):
            self.stop(replica)
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            target = {"rows": self.rows, "masks": self.masks}.get(kind)
            if target is None:
                target = self.slots[int(rest)] if kind == "slot" else self.statistics[rest]
            target.copy_(value[self.order])
        self.epoch, self.step, self._steps, self.started = header["epoch"], header["step"], header["steps"], True
        self._hold()
        notes: dict[str, Any] = header["notes"]
        return notes

    @torch.no_grad()
    def _run_epoch(self) -> Tensor:
        spec, active = self.replicas[0].spec, self.order[: self.running]
        rates = [learning_rate(self.replicas[r].spec, self.epoch) for r in active]
        runs = stretches([(rate, self.replicas[r].spec) for rate, r in zip(rates, active, strict=True)])
        count, size = len(active), len(self.inputs)
        parts = {
            seed: batches(size, spec.batch_size, seed=seed, epoch=self.epoch)
            for seed in {self.replicas[r].seed for r in active}
        }
        orders = {seed: torch.cat(own) for seed, own in parts.items()}
        # One transfer an epoch: a step waits for nothing that the host has to send.
        order = torch.stack([orders[self.replicas[r].seed] for r in active]).to(self.rows.device)
        lengths = [len(part) for part in next(iter(parts.values()))]
        total = torch.zeros(count, dtype=torch.float64, device=self.rows.device)
        offsets = (torch.arange(count, device=self.rows.device) * size).unsqueeze(1)
        targets = self.targets[:count].flatten(0, 1)
        clocks = [torch.tensor(float(self.step), device=self.rows.device) for _ in runs]
        with tuned(self.tuning):
            for index in order.split(lengths, 1):
                x = self.inputs.index_select(0, index.flatten()).unflatten(0, index.shape)
                y = targets.index_select(0, (index + offsets).flatten()).unflatten(0, index.shape)
                losses = self.chain.backward(self._p, self._g, self._statistics, x, y, spec.loss)
                for (part, lr, of), clock in zip(runs, clocks, strict=True):
                    slots = [slot[part] for slot in self.slots]
                    self.update(self.rows[part], self.gradients[part], slots, clock, lr=lr, step=self.step + 1, spec=of)
                if self.masks is not None:
                    self.rows[:count].mul_(self.masks[:count])
                total += losses * index.shape[1]
                self.step += 1
        self.epoch += 1
        for r in active:
            self._steps[r] = self.step
        losses = torch.full((len(self),), math.nan, dtype=torch.float64)
        losses[active] = (total / size).cpu()
        for r in active:
            if not math.isfinite(losses[r]):
                self.rows[self.order.index(r)] = math.nan
                self.stop(r)
        return losses

    def _end_due(self) -> None:
        for replica in self.order[: self.running]:
            if self.replicas[replica].spec.epochs <= self.epoch:
                self.stop(replica)

    def _all(self) -> list[Tensor]:
        found = [self.rows, *self.slots, *self.statistics.values(), self.targets]
        return found if self.masks is None else [*found, self.masks]

    def _hold(self) -> None:
        """Views of the running replicas' parameters; made anew whenever their number changes."""
        self._p, self._g = self.chain.views(self.rows[: self.running]), self.chain.views(self.gradients[: self.running])
        self._statistics = {name: value[: self.running] for name, value in self.statistics.items()}

    def _places(self) -> list[int]:
        return sorted(range(len(self)), key=self.order.__getitem__)


def _check(replicas: Sequence[Replica], inputs: Tensor) -> None:
    if not replicas:
        raise ValueError("there is no replica to train")
    if len(inputs) == 0:
        raise ValueError("there is no training point")
    for name in ("batch_size", "loss", "optimizer", "device"):
        given = sorted({str(getattr(r.spec, name)) for r in replicas})
        if len(given) > 1:
            raise ValueError(f"stacked replicas must agree in train.{name}, not {', '.join(given)}")
    for number, replica in enumerate(replicas):
        check(replica.spec)
        if replica.labels.shape[:1] != inputs.shape[:1] or replica.labels.ndim > 2:
            raise ValueError(
                f"replica {number} has labels of shape {tuple(replica.labels.shape)} for {len(inputs)} points"
            )
        parameters = dict(replica.model.named_parameters())
        for name, mask in (replica.masks or {}).items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise ValueError(f"replica {number}: the mask {name!r} of shape {tuple(mask.shape)} fits no parameter")
