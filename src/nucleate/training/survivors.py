"""Training steps on the weights that masks leave, at a cost in proportion to them; the model is written at the end.

Outside `begin` and `end` the model holds the truth, so that snapshots, evaluations and rewinds know nothing of this.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from nucleate.compact import native
from nucleate.compact.learn import Learner, Rule
from nucleate.compact.sparse import SparseConv2d, SparseLinear
from nucleate.machine.batches import points_at_once
from nucleate.machine.tuning import Tuning, tuned
from nucleate.pruning.masks import Masks
from nucleate.spec import TrainSpec
from nucleate.training.chain import chain_of
from nucleate.training.objective import loss_of, make_optimizer

MEASURED = (0.1, 0.5)
"""Densities at which a step is timed; between and beyond them its time is taken to be a line."""

SECONDS = 0.1
"""Each candidate is timed for about so long, and at least five times."""


class Survivors(Protocol):
    """Steps on what is left of a model."""

    def begin(self) -> None:
        """Take the weights from the model."""

    def end(self) -> None:
        """Write the weights into the model."""

    def step(self, inputs: Tensor, labels: Tensor, index: Tensor, lr: float) -> Tensor | float:
        """One step on the points `index`; returns their mean loss before it."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Outputs (N, C) in eval mode."""

    def take_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's state from one of the model's parameters."""

    def give_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the optimizer's state into one of the model's parameters; that of pruned weights is 0."""


class ChainSurvivors:
    """A chain of linear maps and ReLUs in float32: a step is one native call.

    Raises:
        ValueError: for any other network, on another device than the CPU, or where the kernel is not built.
    """

    def __init__(self, model: nn.Module, masks: Masks, spec: TrainSpec, example: Tensor) -> None:
        chain = chain_of(model)
        if any(layer.norm for layer in chain) or not all(layer.relu for layer in chain[:-1]):
            raise ValueError("only chains of linear maps with ReLUs between them have a native step")
        if example.dtype != torch.float32:
            raise ValueError(f"a native step reads float32, not {example.dtype}")
        modules: list[Any] = [model.get_submodule(layer.linear) for layer in chain]
        rule = Rule(optimizer=spec.optimizer, weight_decay=spec.weight_decay, momentum=spec.momentum)
        names = [f"{layer.linear}.weight" for layer in chain]
        if extra := [name for name in masks if name not in names]:
            raise ValueError(f"a native step holds no mask of {extra[0]}")
        self.learner = Learner(
            modules, [masks.get(name) for name in names], batch=spec.batch_size + 1, rule=rule, loss=spec.loss
        )
        self._seen: tuple[Tensor, Tensor] = (example, example)

    def begin(self) -> None:
        """Take the weights from the model."""
        self.learner.load()

    def end(self) -> None:
        """Write the weights into the model."""
        self.learner.store()

    def step(self, inputs: Tensor, labels: Tensor, index: Tensor, lr: float) -> float:
        """One step on the points `index`; returns their mean loss before it."""
        if self._seen[0] is not inputs:
            self._seen = inputs, inputs.flatten(1).contiguous()
        return self.learner.step(self._seen[1], labels, index, lr)

    def logits(self, inputs: Tensor) -> Tensor:
        """Outputs (N, C)."""
        return self.learner.logits(inputs.flatten(1).contiguous())

    def take_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's state from one of the model's parameters."""
        self.learner.load_state(optimizer.state)

    def give_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the optimizer's state into one of the model's parameters."""
        self.learner.store_state(optimizer.state)


class ModuleSurvivors:
    """Any network: its masked linear maps and 2-d convolutions become sparse ones, all else is the model's own.

    Masked weights of other modules, and weights that several modules share, stay dense and are held at zero.
    """

    def __init__(self, model: nn.Module, masks: Masks, spec: TrainSpec, tuning: Tuning, *, sparse: bool = True) -> None:
        self.model, self.spec, self.tuning = model, spec, tuning
        owners: dict[int, int] = {}
        for module in model.modules():
            for p in module._parameters.values():
                owners[id(p)] = owners.get(id(p), 0) + 1
        self._pairs: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._replaced: set[str] = set()
        self._made: dict[int, nn.Module] = {}
        alone = {name for name, p in model.named_parameters() if owners[id(p)] == 1}
        self.thin = self._thin(model, "", {k: m for k, m in masks.items() if k in alone} if sparse else {})
        own = {id(thin) for _, thin, _ in self._pairs}
        now = {id(dense): thin for dense, thin, _ in self._pairs}
        self._pairs += [(p, p, None) for p in self.thin.parameters() if id(p) not in own]
        self._masked = [
            (now.get(id(p), p), masks[name].to(p))
            for name, p in masks.find(model).items()
            if name not in self._replaced
        ]
        self.optimizer = make_optimizer(self.thin, spec, fused=tuning.fused)

    def begin(self) -> None:
        """Take the weights from the model."""
        self.thin.train()
        for dense, thin, order in self._pairs:
            if thin is not dense:
                thin.data.copy_(dense.data if order is None else dense.data.reshape(-1)[order])

    def end(self) -> None:
        """Write the weights into the model."""
        for dense, thin, order in self._pairs:
            if thin is not dense:
                _spread(dense.data, thin.data, order)

    def step(self, inputs: Tensor, labels: Tensor, index: Tensor, lr: float) -> Tensor:
        """One step on the points `index`; returns their mean loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        points = inputs[index]
        if self.tuning.channels_last and points.ndim == 4:
            points = points.contiguous(memory_format=torch.channels_last)
        # Sparse products are float32: bfloat16 serves the steps that have none.
        bf16 = self.tuning.bf16 and not self._replaced
        with torch.autocast(points.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = self.thin(points)
        outputs = outputs.float() if bf16 else outputs
        loss = loss_of(outputs, labels[index], self.spec.loss, outputs.shape[-1])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for p, mask in self._masked:
                p.mul_(mask)
        return loss.detach()

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Outputs in eval mode."""
        self.thin.eval()
        out = torch.cat([self.thin(x) for x in inputs.split(points_at_once(self.model))])
        self.thin.train()
        return out

    def take_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's state from one of the model's parameters."""
        self.optimizer.state.clear()
        for dense, thin, order in self._pairs:
            if dense in optimizer.state:
                self.optimizer.state[thin] = {
                    name: value.reshape(-1)[order].clone()
                    if order is not None and value.shape == dense.shape
                    else copy.deepcopy(value)
                    for name, value in optimizer.state[dense].items()
                }

    def give_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the optimizer's state into one of the model's parameters."""
        optimizer.state.clear()
        for dense, thin, order in self._pairs:
            if thin in self.optimizer.state:
                optimizer.state[dense] = {
                    name: _spread(torch.zeros_like(dense), value, order)
                    if order is not None and value.shape == thin.shape
                    else copy.deepcopy(value)
                    for name, value in self.optimizer.state[thin].items()
                }

    def _thin(self, module: nn.Module, prefix: str, masks: Mapping[str, Tensor]) -> nn.Module:
        """The module over its own parts, with sparse layers where there is a mask."""
        if id(module) in self._made:
            return self._made[id(module)]
        mask = masks.get(f"{prefix}weight")
        out: nn.Module
        if mask is not None and type(module) is nn.Linear:
            out = SparseLinear(module, mask)
        elif mask is not None and type(module) is nn.Conv2d and module.padding_mode == "zeros":
            out = SparseConv2d(module, mask)
        else:
            # Not a copy of its parameters: buffers and all that is not sparse are the model's own.
            out = copy.copy(module)
            out._modules = {
                name: None if child is None else self._thin(child, f"{prefix}{name}.", masks)
                for name, child in module._modules.items()
            }
        if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(out, SparseLinear | SparseConv2d):
            self._replaced.add(f"{prefix}weight")
            out.to(dtype=module.weight.dtype)
            self._pairs.append((module.weight, out.values, out.order.long()))
            if module.bias is not None and out.bias is not None:
                self._pairs.append((module.bias, out.bias, None))
        self._made[id(module)] = out
        return out


def survivors(
    model: nn.Module, masks: Masks, inputs: Tensor, labels: Tensor, num_classes: int, spec: TrainSpec, tuning: Tuning
) -> Survivors | None:
    """Steps on what the masks leave of a model, or None where steps on masked dense weights are as fast.

    That is so above the tuning's break-even density, which is measured now if it was not before.
    """
    if not masks or masks.density == 1:
        return None
    below = tuning.sparse_below
    if below is None:
        below = break_even(model, list(masks), inputs, labels, num_classes, spec, tuning)
    return best(model, masks, inputs, spec, tuning) if masks.density < below else None


def best(model: nn.Module, masks: Masks, inputs: Tensor, spec: TrainSpec, tuning: Tuning) -> Survivors:
    """One native call a step for a chain, sparse layers in torch's graph for any other network."""
    if native.available() and spec.device == "cpu":
        try:
            return ChainSurvivors(model, masks, spec, inputs[:2])
        except ValueError:
            pass
    return ModuleSurvivors(model, masks, spec, tuning)


def break_even(
    model: nn.Module,
    names: list[str],
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    spec: TrainSpec,
    tuning: Tuning,
) -> float:
    """Density below which a step on the surviving weights takes less time than one on masked dense weights, measured.

    Masks are drawn at two densities; a step takes a fixed time and one in proportion to the weights that are left.

    Args:
        model: never changed.
        names: the parameters that are pruned.
        inputs, labels, num_classes, spec, tuning: as of the training.
    """
    generator = Generator().manual_seed(0)
    inputs, labels = inputs[: 4 * spec.batch_size], labels[: 4 * spec.batch_size]
    size = min(len(inputs), spec.batch_size)
    index = torch.randperm(len(inputs), generator=generator)[:size]

    def drawn(density: float) -> tuple[nn.Module, Masks]:
        own = copy.deepcopy(model).train()
        masks = Masks(
            {n: (torch.rand(own.get_parameter(n).shape, generator=generator) < density).byte() for n in names}
        )
        masks.apply(own)
        return own, masks

    with torch.random.fork_rng(devices=[]), tuned(replace(tuning, sparse_below=0.0)):
        calls: list[Callable[[], object]] = []
        for density in (*MEASURED, None):
            own, masks = drawn(density or MEASURED[0])
            if density is None:
                steps: Survivors = ModuleSurvivors(own, masks, spec, tuning, sparse=False)
            else:
                steps = best(own, masks, inputs, spec, tuning)
            steps.begin()
            # The rate is as good as none: many steps on a few points must not end in NaN, which take longer.
            calls.append(partial(steps.step, inputs, labels, index, 1e-12))
        low, high, dense = _seconds(calls)
    slope = (high - low) / (MEASURED[1] - MEASURED[0])
    if slope <= 0:
        return 1.0 if low < dense else 0.0
    return min(1.0, max(0.0, MEASURED[0] + (dense - low) / slope))


def _seconds(calls: list[Callable[[], object]]) -> list[float]:
    """Shortest time of each call, in turns."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    shortest, spent, rounds = [math.inf] * len(calls), 0.0, 0
    for call in calls:
        call()
    while rounds < 5 or (spent < SECONDS * len(calls) and rounds < 200):
        rounds += 1
        for i, call in enumerate(calls):
            start = clock()
            call()
            taken = clock() - start
            shortest[i], spent = min(shortest[i], taken), spent + taken
    return shortest


def _spread(dense: Tensor, values: Tensor, order: Tensor | None) -> Tensor:
    """Write values into a dense tensor, 0 where there are none."""
    if order is None:
        return dense.copy_(values)
    dense.zero_().view(-1)[order] = values
    return dense
