"""What the sparse operators share: when the kernel serves, and how a product is described to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, library

from nucleate.compact import native

ENTRIES = "Tensor values, Tensor? bias, Tensor[] entries, Tensor[] turned"
"""What a sparse operator takes beside its input."""

_Shape = TypeVar("_Shape", bound=Callable[..., Tensor])


def fake(name: str) -> Callable[[_Shape], _Shape]:
    """Register a function that gives an operator's output without values."""
    return cast(Callable[[_Shape], _Shape], library.register_fake(name))


def native_serves(x: Tensor, values: Tensor) -> bool:
    """Whether the kernel computes this product: float32 on the CPU, and it is there."""
    return x.dtype == values.dtype == torch.float32 and x.device.type == "cpu" and native.available()


def product(entries: Sequence[Tensor], values: Tensor, rows: int, *, indices: Tensor | None = None) -> native.Step:
    """A product step on the entries of a pattern; where its operands lie is for the caller to say."""
    step = native.Step(kind=native.PRODUCT)
    p = step.product
    p.rows, p.block = rows, 4 if values.dim() == 2 else 1
    p.segments = entries[0].shape[0]
    p.pointers, p.values = native.pointer(entries[0]), native.pointer(values)
    where = entries[1] if indices is None else indices
    p.indices, p.wide = native.pointer(where), int(where.dtype == torch.int32)
    return step


def features_first(x: Tensor) -> Tensor:
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


def check_turned(turned: Sequence[Tensor]) -> None:
    """Refuse gradients of a layer that holds no transpose."""
    if not turned:
        raise ValueError("this sparse layer was made for inference: build it with trainable=True to take gradients")


def kept_entries(dense: Tensor, order: Tensor) -> Tensor:
    """Entries of a matrix at flat positions, 0 beyond its end."""
    flat = dense.reshape(-1)
    inside = order < flat.numel()
    return torch.where(inside, flat[order.clamp(max=flat.numel() - 1).long()], torch.zeros((), dtype=flat.dtype))
