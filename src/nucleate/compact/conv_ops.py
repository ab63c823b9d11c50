"""The operator `nucleate::sparse_conv2d` and its gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.nn.grad import conv2d_input, conv2d_weight

from nucleate.compact import native
from nucleate.compact.calls import ENTRIES, check_turned, fake, kept_entries, native_serves, product
from nucleate.compact.geometry import Window
from nucleate.compact.pattern import scatter

_WINDOW = "int groups, int[] shape, int[] stride, int[] padding, int[] dilation"
library.define("nucleate::sparse_conv2d", f"(Tensor x, {ENTRIES}, {_WINDOW}, bool relu) -> Tensor")
library.define(
    "nucleate::sparse_conv2d_input",
    f"(Tensor g, SymInt[] size, Tensor values, Tensor[] entries, Tensor[] turned, {_WINDOW}) -> Tensor",
)
library.define(
    "nucleate::sparse_conv2d_values", f"(Tensor g, Tensor x, Tensor values, Tensor[] entries, {_WINDOW}) -> Tensor"
)


@library.impl("nucleate::sparse_conv2d", "CompositeExplicitAutograd")
def _conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    entries: list[Tensor],
    turned: list[Tensor],
    groups: int,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> Tensor:
    window = Window(tuple(x.shape), groups, shape, stride, padding, dilation)
    rows = shape[0]
    if not native_serves(x, values):
        weight = scatter(values, entries[2], rows, math.prod(shape[1:])).view(shape)
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        out = _empty_image(x, window)
        return out.copy_(y.relu_() if relu else y)
    image, values = window.unfold(x), values.contiguous()
    offsets = _translated(entries, values, rows, window.table(), rows // groups, window.group_step)
    step = product(entries, values, rows, indices=offsets)
    p = step.product
    p.bias, p.relu = native.pointer(bias), int(relu)
    p.x, p.unit = native.pointer(image), x.shape[0]
    out = _empty_image(x, window)
    p.y = native.pointer(out)
    window.positions(p)
    native.run(step)
    return out


def _empty_image(x: Tensor, window: Window) -> Tensor:
    """(N, rows, height, width), the batch innermost in memory; rows as long as the input's for whole planes."""
    width = window.padded[1] if window.whole else window.out[1]
    rows, height = window.shape[0], window.out[0]
    return x.new_empty(rows, height, width, x.shape[0])[:, :, : window.out[1]].permute(3, 0, 1, 2)


@fake("nucleate::sparse_conv2d")
def _(
    x: Tensor,
    values: Tensor,
    bias: Any,
    entries: Any,
    turned: Any,
    groups: int,
    shape: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    relu: bool,
) -> Tensor:
    return _empty_image(x, Window(tuple(x.shape), groups, shape, stride, padding, dilation))


@library.impl("nucleate::sparse_conv2d_input", "CompositeExplicitAutograd")
def _conv2d_input(
    g: Tensor,
    size: list[int],
    values: Tensor,
    entries: list[Tensor],
    turned: list[Tensor],
    groups: int,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    if not native_serves(g, values):
        weight = scatter(values, entries[2], shape[0], math.prod(shape[1:])).view(shape)
        return cast(Tensor, conv2d_input(tuple(size), weight, g, stride, padding, dilation, groups))
    window = Window(tuple(size), groups, shape, stride, padding, dilation)
    ordered = values.reshape(-1).index_select(0, turned[2])
    rows = window.channels * stride[0] * stride[1]
    offsets = _translated(turned, ordered, rows, window.turned_table(), rows // groups, window.turned_group_step)
    step = product(turned, ordered, rows, indices=offsets)
    padded = window.pad_gradient(g)
    out = g.new_empty(window.phases_shape)
    p = step.product
    p.x, p.unit, p.y = native.pointer(padded), size[0], native.pointer(out)
    window.turned_positions(p)
    native.run(step)
    return window.fold(out)


@fake("nucleate::sparse_conv2d_input")
def _(
    g: Tensor,
    size: Any,
    values: Any,
    entries: Any,
    turned: Any,
    groups: int,
    shape: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> Tensor:
    return g.new_empty(size)


@library.impl("nucleate::sparse_conv2d_values", "CompositeExplicitAutograd")
def _conv2d_values(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    entries: list[Tensor],
    groups: int,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    if not native_serves(x, values):
        dense = conv2d_weight(x, tuple(shape), g, stride, padding, dilation, groups)
        return kept_entries(dense.view(shape[0], -1), entries[2])
    window = Window(tuple(x.shape), groups, shape, stride, padding, dilation)
    rows = shape[0]
    image, gt = window.unfold(x), g.permute(1, 2, 3, 0).contiguous()
    offsets = _translated(entries, values, rows, window.table(), rows // groups, window.group_step)
    gradient = torch.zeros(values.shape)
    step = product(entries, values, rows, indices=offsets)
    p = step.product
    step.kind, p.gradient = native.GRADIENT, native.pointer(gradient)
    p.x, p.unit, p.y = native.pointer(image), x.shape[0], native.pointer(gt)
    window.positions(p, whole=False)
    native.run(step)
    return gradient


@fake("nucleate::sparse_conv2d_values")
def _(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    entries: Any,
    groups: int,
    shape: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> Tensor:
    return torch.empty_like(values)


def _conv2d_saves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, entries, turned, *window, relu = inputs
    ctx.save_for_backward(x, values, output if relu else None, *entries, *turned)
    ctx.window = window


def _conv2d_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, output, *patterns = ctx.saved_tensors
    entries, turned = patterns[:3], patterns[3:]
    if output is not None:
        g = g * (output > 0)
    needs = ctx.needs_input_grad
    gx = gv = gb = None
    if needs[0]:
        check_turned(turned)
        gx = torch.ops.nucleate.sparse_conv2d_input(g, x.shape, values, entries, turned, *ctx.window)
    if needs[1]:
        gv = torch.ops.nucleate.sparse_conv2d_values(g, x, values, entries, *ctx.window)
    if needs[2]:
        gb = g.sum((0, 2, 3))
    return gx, gv, gb, [None] * len(entries), [None] * len(turned), *[None] * 6


library.register_autograd("nucleate::sparse_conv2d", _conv2d_backward, setup_context=_conv2d_saves)


def _translated(
    entries: Sequence[Tensor], values: Tensor, rows: int, table: Tensor, rows_per_group: int, group_step: int
) -> Tensor:
    """Offsets into the image, int32, of the columns that the entries name."""
    offsets = torch.empty(entries[1].shape, dtype=torch.int32)
    step = product(entries, values, rows)
    step.kind = native.TRANSLATE
    step.table, step.offsets = native.pointer(table), native.pointer(offsets)
    step.rows_per_group, step.group_step = rows_per_group, group_step
    native.run(step)
    return offsets
