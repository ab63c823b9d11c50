"""The operator `nucleate::sparse_linear` and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from nucleate.compact import native
from nucleate.compact.calls import ENTRIES, check_turned, fake, features_first, kept_entries, native_serves, product
from nucleate.compact.pattern import scatter

library.define("nucleate::sparse_linear", f"(Tensor x, {ENTRIES}, int rows, bool relu) -> Tensor")
library.define(
    "nucleate::sparse_linear_input",
    "(Tensor g, Tensor values, Tensor[] entries, Tensor[] turned, int columns) -> Tensor",
)
library.define("nucleate::sparse_linear_values", "(Tensor g, Tensor x, Tensor values, Tensor[] entries) -> Tensor")


@library.impl("nucleate::sparse_linear", "CompositeExplicitAutograd")
def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, entries: list[Tensor], turned: list[Tensor], rows: int, relu: bool
) -> Tensor:
    if not native_serves(x, values):
        y = F.linear(x, scatter(values, entries[2], rows, x.shape[1]), bias)
        return (y.relu_() if relu else y).T.contiguous().T
    return _native_linear(x, values, bias, entries, rows, relu)


def _native_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, entries: Sequence[Tensor], rows: int, relu: bool
) -> Tensor:
    xt, values = features_first(x), values.contiguous()
    y = torch.empty(rows, x.shape[0])
    step = product(entries, values, rows)
    p = step.product
    p.bias, p.relu = native.pointer(bias), int(relu)
    p.x, p.unit = native.pointer(xt), xt.stride(0)
    p.y, p.y_pitch, p.lines, p.length = native.pointer(y), y.stride(0), 1, x.shape[0]
    native.run(step)
    return y.T


@fake("nucleate::sparse_linear")
def _(x: Tensor, values: Tensor, bias: Any, entries: Any, turned: Any, rows: int, relu: bool) -> Tensor:
    return x.new_empty(rows, x.shape[0]).T


@library.impl("nucleate::sparse_linear_input", "CompositeExplicitAutograd")
def _linear_input(g: Tensor, values: Tensor, entries: list[Tensor], turned: list[Tensor], columns: int) -> Tensor:
    if not native_serves(g, values):
        return (g @ scatter(values, entries[2], g.shape[1], columns)).T.contiguous().T
    return _native_linear(g, values.reshape(-1).index_select(0, turned[2]), None, turned, columns, False)


@fake("nucleate::sparse_linear_input")
def _(g: Tensor, values: Tensor, entries: Any, turned: Any, columns: int) -> Tensor:
    return g.new_empty(columns, g.shape[0]).T


@library.impl("nucleate::sparse_linear_values", "CompositeExplicitAutograd")
def _linear_values(g: Tensor, x: Tensor, values: Tensor, entries: list[Tensor]) -> Tensor:
    if not native_serves(x, values):
        return kept_entries(g.T @ x, entries[2])
    gt, xt = features_first(g), features_first(x)
    gradient = torch.zeros(values.shape)
    step = product(entries, values, g.shape[1])
    p = step.product
    step.kind, p.gradient = native.GRADIENT, native.pointer(gradient)
    p.x, p.unit = native.pointer(xt), xt.stride(0)
    p.y, p.y_pitch, p.lines, p.length = native.pointer(gt), gt.stride(0), 1, x.shape[0]
    native.run(step)
    return gradient


@fake("nucleate::sparse_linear_values")
def _(g: Tensor, x: Tensor, values: Tensor, entries: Any) -> Tensor:
    return torch.empty_like(values)


def _linear_saves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, entries, turned, _, relu = inputs
    ctx.save_for_backward(x, values, output if relu else None, *entries, *turned)
    ctx.relu = relu


def _linear_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, output, *patterns = ctx.saved_tensors
    entries, turned = patterns[:3], patterns[3:]
    if output is not None:
        g = g * (output > 0)
    needs = ctx.needs_input_grad
    gx = gv = gb = None
    if needs[0]:
        check_turned(turned)
        gx = torch.ops.nucleate.sparse_linear_input(g, values, entries, turned, x.shape[1])
    if needs[1]:
        gv = torch.ops.nucleate.sparse_linear_values(g, x, values, entries)
    if needs[2]:
        gb = g.sum(0)
    return gx, gv, gb, [None] * len(entries), [None] * len(turned), None, None


library.register_autograd("nucleate::sparse_linear", _linear_backward, setup_context=_linear_saves)
