"""Training counted in steps, with masks: stops at any step, goes back to any rewind point, resumes to the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from nucleate.machine.tuning import Tuning, tuned
from nucleate.pruning.masks import Masks
from nucleate.spec import TrainSpec
from nucleate.training.draws import borrowed
from nucleate.training.held import HeldOut
from nucleate.training.loop import batches, check, learning_rate, loss_of, make_optimizer
from nucleate.training.rewind import RewindPoint
from nucleate.training.survivors import Survivors, survivors


class StepTraining:
    """A network being trained on tensors in memory, one step after another.

    The data order is a function of (seed, step), as in `Training`; what else is random (dropout, say) comes from the
    training's own state of torch's generator, so other draws in the process change nothing. Masked weights are set
    to zero after every optimizer step and before the first.

    Raises:
        ValueError: if there are no points, or the spec's numbers make no training.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        num_classes: int,
        spec: TrainSpec,
        tuning: Tuning,
        *,
        seed: int = 0,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        check(spec)
        if len(inputs) == 0:
            raise ValueError("there is no training point")
        self.model, self.num_classes, self.spec, self.tuning, self.seed = model, num_classes, spec, tuning, seed
        self.model.to(spec.device)
        if tuning.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.inputs, self.labels = inputs.to(spec.device), labels.to(spec.device)
        self.optimizer = make_optimizer(model, spec, fused=tuning.fused)
        self.masks = Masks(masks).to(spec.device)
        weights = self.masks.find(model)
        self._weights: list[Tensor] = list(weights.values())
        # A float mask multiplies as fast as a float does; uint8 and bool are converted on the way.
        self._floats = [self.masks[name].to(w) for name, w in weights.items()]
        self.masks.apply(model)
        self._survivors: Survivors | None = None
        if spec.sparse:
            self._survivors = survivors(model, self.masks, self.inputs, self.labels, num_classes, spec, tuning)
        self.step = 0
        self.per_epoch = len(batches(len(inputs), spec.batch_size, seed=seed, epoch=0))
        self._order: tuple[int, list[Tensor]] = (-1, [])
        with borrowed(spec.device) as generators:
            self._draws = [g.manual_seed(seed).get_state() for g in generators]

    @property
    def horizon(self) -> int:
        """Step at which the training ends."""
        return self.spec.epochs * self.per_epoch

    def run(self, until: int) -> None:
        """Train up to a step.

        Raises:
            ValueError: if the loss is no longer finite.
        """
        self.model.train()
        last: Tensor | float | None = None
        if self._survivors is not None:
            self._survivors.begin()
        with self._drawing() as generators, tuned(self.tuning):
            while self.step < min(until, self.horizon):
                last = self._step()
            self._draws = [g.get_state() for g in generators]
        if self._survivors is not None:
            self._survivors.end()
        if last is not None and not math.isfinite(float(last)):
            raise ValueError(
                f"the training loss became {float(last)} by step {self.step}: lower the learning rate "
                f"({self.spec.lr:g})"
            )

    @contextmanager
    def _drawing(self) -> Iterator[list[Generator]]:
        """Generators of torch in this training's own state."""
        with borrowed(self.spec.device) as generators:
            for g, state in zip(generators, self._draws, strict=True):
                g.set_state(state)
            yield generators

    def _step(self) -> Tensor | float:
        epoch, position = divmod(self.step, self.per_epoch)
        if self._order[0] != epoch:
            size = len(self.inputs)
            self._order = epoch, batches(size, self.spec.batch_size, seed=self.seed, epoch=epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.spec, epoch)
        index = self._order[1][position].to(self.inputs.device)
        if self._survivors is not None:
            self.step += 1
            return self._survivors.step(self.inputs, self.labels, index, self.optimizer.param_groups[0]["lr"])
        inputs, labels = self.inputs[index], self.labels[index]
        if self.tuning.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.tuning.bf16):
            outputs = self.model(inputs)
        loss = loss_of(outputs.float() if self.tuning.bf16 else outputs, labels, self.spec.loss, self.num_classes)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self._weights:
            with torch.no_grad():
                torch._foreach_mul_(self._weights, self._floats)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def logits(self, points: HeldOut) -> Tensor:
        """Outputs (N, C) in eval mode, on the CPU."""
        self.model.eval()
        with tuned(self.tuning):
            if self._survivors is not None:
                self._survivors.begin()
                return self._survivors.logits(points.inputs).float()
            return points.logits(self.model)

    def snapshot(self) -> RewindPoint:
        """The full state now, to come back to."""
        with self._drawing():
            if self._survivors is not None:
                self._survivors.give_state(self.optimizer)
            return RewindPoint.take(self.model, self.optimizer, step=self.step)

    def rewind(self, point: RewindPoint, *, keep_noise: bool = False) -> None:
        """Go on from a point, under this training's own masks and seed.

        With `keep_noise` random draws (dropout, say) stay this training's own too: two copies of one network are then
        trained on with different noise.
        """
        point.restore(self.model, self.optimizer, rng=False)
        # The optimizer's state of pruned weights reaches no kept weight; left alone, a resumed training repeats
        # an uninterrupted one to the sign of its zeros.
        self.masks.apply(self.model)
        if self._survivors is not None:
            self._survivors.take_state(self.optimizer)
        if not keep_noise:
            self._draws = point.draws(self.spec.device)
        self.step, self._order = point.step, (-1, [])
