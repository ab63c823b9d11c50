"""From maps and token sequences to one vector a point, by a pooling that has a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor

Pool = str | Callable[[Tensor], Tensor]

NAMES = "auto, flatten, gap, mean, cls, last, token:I, position:I,J"


def pool_name(pool: Pool, shape: tuple[int, ...]) -> str:
    """Name of the pooling that `pooled` applies to an output of this shape; "" where one vector a point is there.

    "auto" is "gap" for maps (N, channels, height, width, ...) and "mean" for token sequences (N, tokens, d). Outputs of
    one-dimensional convolutions have three axes too: give "gap" for them.

    >>> pool_name("auto", (8, 64, 4, 4)), pool_name("auto", (8, 16, 32)), pool_name("gap", (8, 10))
    ('gap', 'mean', '')
    """
    if len(shape) <= 2:
        return ""
    if callable(pool):
        return getattr(pool, "__name__", type(pool).__name__)
    if pool == "auto":
        return "mean" if len(shape) == 3 else "gap"
    return pool


def pooled(h: Tensor, pool: Pool = "auto") -> Tensor:
    """Features (N, d) of an output with any number of axes; a view of it where nothing is averaged.

    flatten: all axes in a row. gap: average over positions of (N, channels, ...). mean, cls, last, token:I: average,
    first, last or I-th of the tokens of (N, tokens, d). position:I,J: one place of a map. Or a function of the output.

    Raises:
        ValueError: for an unknown name, or an output that it does not fit.

    >>> import torch
    >>> pooled(torch.tensor([[[[1.0, 3.0]]]])).tolist(), pooled(torch.ones(2, 7, 3), "cls").shape
    ([[2.0]], torch.Size([2, 3]))
    """
    if h.ndim <= 2:
        return h.reshape(len(h), -1) if h.ndim else h.reshape(1, 1)
    name = pool_name(pool, tuple(h.shape))
    if callable(pool):
        out = pool(h)
    elif name == "flatten":
        return h.flatten(1)
    elif name == "gap":
        # One long axis is averaged several times faster than two short ones; channels_last maps have none to make.
        flat = h.is_contiguous()
        return h.flatten(2).mean(2) if flat else h.mean(tuple(range(2, h.ndim)))
    else:
        out = _positioned(h, name)
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(h):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"pool {name!r} must give one vector a point, ({len(h)}, d), not {got}")
    return out


def pool_for(layer: str, pool: Pool | Mapping[str, Pool]) -> Pool:
    """The pooling of a layer: the first pattern of a mapping that matches its name, else "auto".

    >>> pool_for("stem.conv", {"stem*": "gap", "*": "cls"}), pool_for("blocks.3", {"stem*": "gap", "*": "cls"})
    ('gap', 'cls')
    """
    if not isinstance(pool, Mapping):
        return pool
    return next((p for pattern, p in pool.items() if pattern == layer or fnmatchcase(layer, pattern)), "auto")


def _positioned(h: Tensor, name: str) -> Tensor:
    kind, _, place = name.partition(":")
    kind, place = {"cls": ("token", "0"), "last": ("token", "-1")}.get(name, (kind, place))
    try:
        index = [int(i) for i in place.split(",")] if place else []
    except ValueError:
        index = []
    axes = {"mean": 1, "token": 1, "position": h.ndim - 2}.get(kind)
    if axes is None or (kind == "mean") != (not index) or (kind == "mean" and place):
        raise ValueError(f"unknown pool {name!r}; there are {NAMES}, or a function")
    if kind != "position" and h.ndim != 3:
        raise ValueError(
            f"pool {name!r} reads token sequences (N, tokens, d), not {tuple(h.shape)}; "
            'use "gap" for maps, or a mapping from layers to pools'
        )
    if kind == "mean":
        return h.mean(1)
    sizes = h.shape[1:2] if kind == "token" else h.shape[2:]
    if len(index) != axes or any(not -n <= i < n for i, n in zip(index, sizes, strict=False)):
        raise ValueError(f"pool {name!r} does not fit an output of shape {tuple(h.shape)}")
    if kind == "token":
        return h[:, index[0]]
    flat = 0
    for i, n in zip(index, sizes, strict=True):
        flat = flat * n + i % n
    return h.reshape(*h.shape[:2], math.prod(sizes))[:, :, flat]
