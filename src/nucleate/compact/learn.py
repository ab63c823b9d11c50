"""Training steps of a chain of linear maps and ReLUs on the weights that are left, each one native call.

A step of a small network is over before torch has dispatched its operators. Activations and their gradients are
(features, batch); the weights left of all layers, and their biases, lie in one vector, which the optimizer walks once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nucleate.compact import native
from nucleate.compact.pattern import BLOCK, Pattern, pattern, transposed


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How weights move: SGD with momentum, or Adam with coupled weight decay, as `torch.optim` has them."""

    optimizer: Literal["sgd", "adam"]
    weight_decay: float = 0.0
    momentum: float = 0.9
    """Of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def state(self) -> tuple[str, ...]:
        """Names of what the optimizer keeps for every weight."""
        if self.optimizer == "adam":
            return ("exp_avg", "exp_avg_sq")
        return ("momentum_buffer",) if self.momentum else ()

    def rates(self, lr: float, step: int) -> list[float]:
        """What the native update reads at a step, counted from 1: `rates` of kernel.h.

        >>> Rule(optimizer="sgd").rates(0.1, 1)
        [0.1, 0.0, 0.9]
        """
        if self.optimizer == "sgd":
            return [lr, self.weight_decay, self.momentum]
        first, second = (1 - beta**step for beta in self.betas)
        return [lr / first, self.weight_decay, *self.betas, second**-0.5, self.eps]


@dataclass(frozen=True, eq=False)
class _Held:
    """A layer's surviving weights: where they lie in the vector."""

    linear: nn.Linear
    held: Pattern
    values: slice
    bias: slice


class Learner:
    """The surviving weights of a chain of linear maps with ReLUs between them, in training.

    Args:
        layers: the chain; their weights and biases are read now, and written by `store`.
        masks: for each layer its mask, not 0 where a weight is left, or None for all.
        batch: the largest batch.
        loss: mean cross-entropy, or squared error against one-hot labels averaged over points and classes.
        rule: how weights move.

    Raises:
        ValueError: if there is no kernel, a layer is not float32 on the CPU, or a mask has another shape.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> learner = Learner([net[0], net[2]], [torch.ones(8, 4), None], batch=4, rule=Rule(optimizer="sgd"))
    >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    >>> losses = [learner.step(x, y, torch.arange(4), lr=0.5) for _ in range(50)]
    >>> losses[-1] < 0.1 < losses[0]
    True
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        masks: Sequence[Tensor | None],
        *,
        batch: int,
        rule: Rule,
        loss: Literal["cross-entropy", "mse"] = "cross-entropy",
    ) -> None:
        if not native.available():
            raise ValueError(native.status())
        for layer in layers:
            if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
                raise ValueError(
                    f"weights are float32 on the CPU, not {layer.weight.dtype} on {layer.weight.device.type}"
                )
        self.rule, self.updates, self.batch = rule, 0, batch
        # Whole vectors: a batch of 60 in rows of 64 is one walk over the weights, in rows of 60 it is four.
        self.pitch = 16 if batch <= 16 else -(-batch // 32) * 32
        self.inputs, self.classes = layers[0].in_features, layers[-1].out_features
        self.layers: list[_Held] = []
        size = 0
        for layer, mask in zip(layers, masks, strict=True):
            if mask is not None and mask.shape != layer.weight.shape:
                raise ValueError(
                    f"a mask of shape {tuple(mask.shape)} does not fit a weight of shape {tuple(layer.weight.shape)}"
                )
            kept = torch.ones_like(layer.weight) if mask is None else mask
            held = pattern(kept, block=BLOCK if bool((kept != 0).all()) else 1)
            values = slice(size, size + held.order.numel())
            bias = slice(values.stop, values.stop + (0 if layer.bias is None else len(layer.bias)))
            self.layers.append(_Held(layer, held, values, bias))
            size = bias.stop
        names = ("values", "gradient", *rule.state)
        # Vectors of the optimizer that the rule does without are still there, so that one loop serves all.
        self._vectors = {name: torch.zeros(size) for name in (*names, "momentum_buffer")}
        self._loss, self._rates = ctypes.c_double(), (ctypes.c_float * 6)()
        self._keep: list[Any] = []
        self._forward, self._train = self._plan(loss)
        self.load()

    @property
    def left(self) -> int:
        """Weights that are left, biases not counted."""
        return sum(x.values.stop - x.values.start for x in self.layers)

    def step(self, inputs: Tensor, labels: Tensor, index: Tensor, lr: float) -> float:
        """One step on the points `index` of inputs (N, d) with labels (N,); returns the mean loss before it."""
        points = len(index)
        if not 0 < points <= self.batch:
            raise ValueError(f"a batch holds 1 to {self.batch} points, not {points}")
        self._check(inputs)
        steps, count = self._train, len(self._train)
        self.updates += 1
        for i, rate in enumerate(self.rule.rates(lr, self.updates)):
            self._rates[i] = rate
        steps[0].source, steps[0].batch = inputs.data_ptr(), points
        steps[0].learn.index = index.data_ptr()
        last = steps[len(self.layers) + 1]
        last.batch, last.learn.index, last.learn.labels = points, index.data_ptr(), labels.data_ptr()
        native.run(steps, count)
        return self._loss.value

    def logits(self, inputs: Tensor) -> Tensor:
        """Outputs (N, C) of inputs (N, d)."""
        self._check(inputs)
        out = torch.empty(len(inputs), self.classes)
        steps = self._forward
        first, last = steps[0], steps[len(self.layers) + 1]
        for start in range(0, len(inputs), self.pitch):
            points = min(self.pitch, len(inputs) - start)
            first.source, first.batch = native.pointer(inputs, start * self.inputs), points
            last.target, last.batch = native.pointer(out, start * self.classes), points
            native.run(steps, len(steps))
        return out

    @torch.no_grad()
    def load(self) -> None:
        """Take weights and biases from the layers."""
        values = self._vectors["values"]
        for x in self.layers:
            values[x.values] = x.held.gather(x.linear.weight).reshape(-1)
            if x.linear.bias is not None:
                values[x.bias] = x.linear.bias

    @torch.no_grad()
    def store(self) -> None:
        """Write weights and biases into the layers; what is pruned is 0."""
        for x in self.layers:
            self._into(x, self._vectors["values"], x.linear.weight, x.linear.bias)

    def load_state(self, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Take the optimizer's state from a `torch.optim` optimizer of the layers' parameters."""
        self.updates = 0
        for x in self.layers:
            for parameter, where in _parameters(x):
                entry = state.get(parameter, {})
                for name in self.rule.state:
                    value = entry.get(name)
                    target = self._vectors[name][where]
                    if value is None:
                        target.zero_()
                    else:
                        target.copy_(x.held.gather(value).reshape(-1) if parameter is x.linear.weight else value)
                self.updates = int(entry.get("step", self.updates))

    def store_state(self, state: Any) -> None:
        """Write the optimizer's state as `torch.optim` holds it; that of pruned weights is 0."""
        for x in self.layers:
            for parameter, _ in _parameters(x):
                state[parameter] = {name: torch.zeros_like(parameter) for name in self.rule.state}
                if self.rule.optimizer == "adam":
                    state[parameter]["step"] = torch.tensor(float(self.updates))
            for name in self.rule.state:
                bias = None if x.linear.bias is None else state[x.linear.bias][name]
                self._into(x, self._vectors[name], state[x.linear.weight][name], bias)

    def _into(self, x: _Held, vector: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        weight.copy_(x.held.scatter(vector[x.values]))
        if bias is not None:
            bias.copy_(vector[x.bias])

    def _check(self, inputs: Tensor) -> None:
        if inputs.dtype != torch.float32 or inputs.shape[1:] != (self.inputs,) or not inputs.is_contiguous():
            raise ValueError(
                f"inputs are contiguous float32 (N, {self.inputs}), not {inputs.dtype} {tuple(inputs.shape)}"
            )

    def _plan(self, loss: str) -> tuple[Any, Any]:
        """The steps that give logits, and those of training."""
        depth, pitch = len(self.layers), self.pitch
        widths = [self.inputs, *(x.held.rows for x in self.layers)]
        h = [self._buffer(width * pitch) for width in widths]
        d = [None, *(self._buffer(width * pitch) for width in widths[1:])]
        pick = native.Step(kind=native.PICK)
        pick.target, pick.channels, pick.height = native.pointer(h[0]), widths[0], pitch
        forward = [pick]
        for i, x in enumerate(self.layers):
            step = self._product(x.held, native.pointer(self._vectors["values"], x.values.start), h[i], h[i + 1])
            step.product.relu = int(i + 1 < depth)
            step.product.bias = self._bias(x, "values")
            forward.append(step)
        out = native.Step(kind=native.COPY)
        out.source, out.channels, out.height, out.width = native.pointer(h[-1]), 1, 1, self.classes
        out.from_.phases = out.to.phases = 1
        out.from_.column, out.from_.batch, out.to.column, out.to.batch = pitch, 1, 1, self.classes
        last = native.Step(kind=native.LOSS)
        last.source, last.target = native.pointer(h[-1]), native.pointer(d[-1])
        last.channels, last.height, last.learn.squared = self.classes, pitch, int(loss == "mse")
        last.learn.loss = ctypes.addressof(self._loss)
        train = [*forward, last]
        for i in reversed(range(depth)):
            x = self.layers[i]
            back = native.Step(kind=native.BACK)
            back.source = native.pointer(h[i + 1]) if i + 1 < depth else None
            back.target, back.channels, back.height = native.pointer(d[i + 1]), widths[i + 1], pitch
            back.learn.gradient = self._bias(x, "gradient")
            train.append(back)
            values = native.pointer(self._vectors["values"], x.values.start)
            step = self._product(x.held, values, h[i], d[i + 1])
            step.kind = native.GRADIENT
            step.product.gradient = native.pointer(self._vectors["gradient"], x.values.start)
            train.append(step)
            if i:
                train += self._turned(x, values, d[i + 1], d[i])
        train.append(self._update())
        return ((native.Step * (depth + 2))(*forward, out), (native.Step * len(train))(*train))

    def _product(self, held: Pattern, values: int | None, x: Tensor | None, y: Tensor | None) -> native.Step:
        step = native.Step(kind=native.PRODUCT)
        p = step.product
        p.rows, p.segments, p.block = held.rows, held.pointers.shape[0], held.block
        p.pointers, p.indices, p.values = native.pointer(held.pointers), native.pointer(held.indices), values
        p.wide = int(held.indices.dtype == torch.int32)
        p.x, p.unit, p.y, p.y_pitch = native.pointer(x), self.pitch, native.pointer(y), self.pitch
        p.lines, p.length = 1, self.pitch
        return step

    def _turned(self, x: _Held, values: int | None, above: Tensor | None, below: Tensor | None) -> list[native.Step]:
        """The gradient of a layer's input: its values in the order of the transpose, and the product with them."""
        turned, where = transposed(x.held)
        order, ordered = where.to(torch.int32), self._buffer(len(where))
        self._keep += [turned, order]
        turn = native.Step(kind=native.TURN)
        turn.source, turn.target = values, native.pointer(ordered)
        turn.learn.order, turn.learn.count = native.pointer(order), len(order)
        return [turn, self._product(turned, native.pointer(ordered), above, below)]

    def _update(self) -> native.Step:
        step = native.Step(kind=native.UPDATE)
        learn = step.learn
        learn.adam = int(self.rule.optimizer == "adam")
        first = self.rule.state[0] if self.rule.state else "momentum_buffer"
        learn.values, learn.gradient, learn.first = (
            native.pointer(self._vectors[name]) for name in ("values", "gradient", first)
        )
        learn.second = native.pointer(self._vectors["exp_avg_sq"]) if learn.adam else None
        learn.count, learn.rates = len(self._vectors["values"]), ctypes.addressof(self._rates)
        return step

    def _bias(self, x: _Held, vector: str) -> int | None:
        return native.pointer(self._vectors[vector], x.bias.start) if x.linear.bias is not None else None

    def _buffer(self, size: int) -> Tensor:
        buffer = torch.zeros(size)
        self._keep.append(buffer)
        return buffer


def _parameters(x: _Held) -> Iterable[tuple[Tensor, slice]]:
    yield x.linear.weight, x.values
    if x.linear.bias is not None:
        yield x.linear.bias, x.bias
