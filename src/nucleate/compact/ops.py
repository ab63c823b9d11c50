"""Sparse products as torch operators, with shapes for tracing and gradients; in plain torch where there is no kernel.

`nucleate::sparse_linear` and `nucleate::sparse_conv2d` take the weights that are left as a flat tensor. `entries` is
(pointers, indices, order) of a `Pattern`; `turned` the same of its transpose, where `order` points into the values, or
empty for weights that are never trained. The results keep the batch innermost in memory, (features, batch) seen as
(batch, features), so that neighbouring sparse layers, and what works element by element between them, copy nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from nucleate.compact import native
from nucleate.compact.geometry import Window
from nucleate.compact.pattern import scatter

_ENTRIES = "Tensor values, Tensor? bias, Tensor[] entries, Tensor[] turned"
_WINDOW = "int groups, int[] shape, int[] stride, int[] padding, int[] dilation"
torch.library.define("nucleate::sparse_linear", f"(Tensor x, {_ENTRIES}, int rows, bool relu) -> Tensor")
torch.library.define(
    "nucleate::sparse_linear_input",
    "(Tensor g, Tensor values, Tensor[] entries, Tensor[] turned, int columns) -> Tensor",
)
torch.library.define(
    "nucleate::sparse_linear_values", "(Tensor g, Tensor x, Tensor values, Tensor[] entries) -> Tensor"
)
torch.library.define("nucleate::sparse_conv2d", f"(Tensor x, {_ENTRIES}, {_WINDOW}, bool relu) -> Tensor")
torch.library.define(
    "nucleate::sparse_conv2d_input",
    f"(Tensor g, SymInt[] size, Tensor values, Tensor[] entries, Tensor[] turned, {_WINDOW}) -> Tensor",
)
torch.library.define(
    "nucleate::sparse_conv2d_values", f"(Tensor g, Tensor x, Tensor values, Tensor[] entries, {_WINDOW}) -> Tensor"
)


_Shape = TypeVar("_Shape", bound=Callable[..., Tensor])


def _fake(name: str) -> Callable[[_Shape], _Shape]:
    """Register a function that gives an operator's output without values."""
    return cast(Callable[[_Shape], _Shape], torch.library.register_fake(name))


def native_serves(x: Tensor, values: Tensor) -> bool:
    """Whether the kernel computes this product: float32 on the CPU, and it is there."""
    return x.dtype == values.dtype == torch.float32 and x.device.type == "cpu" and native.available()


def _product(entries: Sequence[Tensor], values: Tensor, rows: int, *, indices: Tensor | None = None) -> native.Step:
    step = native.Step(kind=native.PRODUCT)
    p = step.product
    p.rows, p.block = rows, 4 if values.dim() == 2 else 1
    p.segments = entries[0].shape[0]
    p.pointers, p.values = native.pointer(entries[0]), native.pointer(values)
    where = entries[1] if indices is None else indices
    p.indices, p.wide = native.pointer(where), int(where.dtype == torch.int32)
    return step


def _features_first(x: Tensor) -> Tensor:
    """(features, batch) with the batch innermost, without a copy where it is already."""
    t = x.T
    if t.stride(1) == 1 and t.stride(0) >= t.shape[1]:
        return t
    if t.shape[1] == 1:
        return t.reshape(-1, 1)
    out = torch.empty(t.shape, dtype=t.dtype)
    step = native.Step(kind=native.COPY)
    step.source, step.target = native.pointer(x), native.pointer(out)
    step.channels, step.height, step.width, step.batch = 1, 1, t.shape[0], t.shape[1]
    step.from_.phases = step.to.phases = 1
    step.from_.column, step.from_.batch = t.stride()
    step.to.column, step.to.batch = out.stride()
    native.run(step)
    return out


@torch.library.impl("nucleate::sparse_linear", "CompositeExplicitAutograd")
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
    xt, values = _features_first(x), values.contiguous()
    y = torch.empty(rows, x.shape[0])
    step = _product(entries, values, rows)
    p = step.product
    p.bias, p.relu = native.pointer(bias), int(relu)
    p.x, p.unit = native.pointer(xt), xt.stride(0)
    p.y, p.y_pitch, p.lines, p.length = native.pointer(y), y.stride(0), 1, x.shape[0]
    native.run(step)
    return y.T


@_fake("nucleate::sparse_linear")
def _(x: Tensor, values: Tensor, bias: Any, entries: Any, turned: Any, rows: int, relu: bool) -> Tensor:
    return x.new_empty(rows, x.shape[0]).T


@torch.library.impl("nucleate::sparse_linear_input", "CompositeExplicitAutograd")
def _linear_input(g: Tensor, values: Tensor, entries: list[Tensor], turned: list[Tensor], columns: int) -> Tensor:
    if not native_serves(g, values):
        return (g @ scatter(values, entries[2], g.shape[1], columns)).T.contiguous().T
    return _native_linear(g, values.reshape(-1).index_select(0, turned[2]), None, turned, columns, False)


@_fake("nucleate::sparse_linear_input")
def _(g: Tensor, values: Tensor, entries: Any, turned: Any, columns: int) -> Tensor:
    return g.new_empty(columns, g.shape[0]).T


@torch.library.impl("nucleate::sparse_linear_values", "CompositeExplicitAutograd")
def _linear_values(g: Tensor, x: Tensor, values: Tensor, entries: list[Tensor]) -> Tensor:
    if not native_serves(x, values):
        return _kept(g.T @ x, entries[2])
    gt, xt = _features_first(g), _features_first(x)
    gradient = torch.zeros(values.shape)
    step = _product(entries, values, g.shape[1])
    p = step.product
    step.kind, p.gradient = native.GRADIENT, native.pointer(gradient)
    p.x, p.unit = native.pointer(xt), xt.stride(0)
    p.y, p.y_pitch, p.lines, p.length = native.pointer(gt), gt.stride(0), 1, x.shape[0]
    native.run(step)
    return gradient


@_fake("nucleate::sparse_linear_values")
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
        _check_turned(turned)
        gx = torch.ops.nucleate.sparse_linear_input(g, values, entries, turned, x.shape[1])
    if needs[1]:
        gv = torch.ops.nucleate.sparse_linear_values(g, x, values, entries)
    if needs[2]:
        gb = g.sum(0)
    return gx, gv, gb, [None] * len(entries), [None] * len(turned), None, None


torch.library.register_autograd("nucleate::sparse_linear", _linear_backward, setup_context=_linear_saves)


@torch.library.impl("nucleate::sparse_conv2d", "CompositeExplicitAutograd")
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
    step = _product(entries, values, rows, indices=offsets)
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


@_fake("nucleate::sparse_conv2d")
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


@torch.library.impl("nucleate::sparse_conv2d_input", "CompositeExplicitAutograd")
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
    step = _product(turned, ordered, rows, indices=offsets)
    padded = window.pad_gradient(g)
    out = g.new_empty(window.phases_shape)
    p = step.product
    p.x, p.unit, p.y = native.pointer(padded), size[0], native.pointer(out)
    window.turned_positions(p)
    native.run(step)
    return window.fold(out)


@_fake("nucleate::sparse_conv2d_input")
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


@torch.library.impl("nucleate::sparse_conv2d_values", "CompositeExplicitAutograd")
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
        return _kept(dense.view(shape[0], -1), entries[2])
    window = Window(tuple(x.shape), groups, shape, stride, padding, dilation)
    rows = shape[0]
    image, gt = window.unfold(x), g.permute(1, 2, 3, 0).contiguous()
    offsets = _translated(entries, values, rows, window.table(), rows // groups, window.group_step)
    gradient = torch.zeros(values.shape)
    step = _product(entries, values, rows, indices=offsets)
    p = step.product
    step.kind, p.gradient = native.GRADIENT, native.pointer(gradient)
    p.x, p.unit, p.y = native.pointer(image), x.shape[0], native.pointer(gt)
    window.positions(p, whole=False)
    native.run(step)
    return gradient


@_fake("nucleate::sparse_conv2d_values")
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
        _check_turned(turned)
        gx = torch.ops.nucleate.sparse_conv2d_input(g, x.shape, values, entries, turned, *ctx.window)
    if needs[1]:
        gv = torch.ops.nucleate.sparse_conv2d_values(g, x, values, entries, *ctx.window)
    if needs[2]:
        gb = g.sum((0, 2, 3))
    return gx, gv, gb, [None] * len(entries), [None] * len(turned), *[None] * 6


torch.library.register_autograd("nucleate::sparse_conv2d", _conv2d_backward, setup_context=_conv2d_saves)


def _translated(
    entries: Sequence[Tensor], values: Tensor, rows: int, table: Tensor, rows_per_group: int, group_step: int
) -> Tensor:
    """Offsets into the image, int32, of the columns that the entries name."""
    offsets = torch.empty(entries[1].shape, dtype=torch.int32)
    step = _product(entries, values, rows)
    step.kind = native.TRANSLATE
    step.table, step.offsets = native.pointer(table), native.pointer(offsets)
    step.rows_per_group, step.group_step = rows_per_group, group_step
    native.run(step)
    return offsets


def _check_turned(turned: Sequence[Tensor]) -> None:
    if not turned:
        raise ValueError("this sparse layer was made for inference: build it with trainable=True to take gradients")


def _kept(dense: Tensor, order: Tensor) -> Tensor:
    """Entries of a matrix at flat positions, 0 beyond its end."""
    flat = dense.reshape(-1)
    inside = order < flat.numel()
    return torch.where(inside, flat[order.clamp(max=flat.numel() - 1).long()], torch.zeros((), dtype=flat.dtype))
