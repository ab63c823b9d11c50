"""How many weights each layer keeps."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from nucleate.pruning.layout import Layout

SCOPES = ("global", "layer", "uniform", "erk", "owl")


def layer_counts(
    scores: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    density: float,
    scope: str | Mapping[str, float | int],
) -> dict[str, int]:
    """Number of weights kept in each tensor.

    Raises:
        ValueError: for an unknown scope, or a mapping that names other tensors or asks for more than there are.

    >>> import torch
    >>> layer_counts({"a": torch.zeros(10), "b": torch.zeros(5)}, {}, 0.5, {"a": 0.25, "b": 4})
    {'a': 3, 'b': 4}
    """
    sizes = {name: s.numel() for name, s in scores.items()}
    shares = layer_shares(scores, layouts, density, scope)
    if not isinstance(scope, str):
        return {name: n if isinstance(n := scope[name], int) else round_half_up(n * sizes[name]) for name in sizes}
    if scope in ("layer", "uniform"):
        return {name: round_half_up(density * size) for name, size in sizes.items()}
    total = round_half_up(density * sum(sizes.values()))
    counts = share_out([shares[n] * sizes[n] for n in sizes], list(sizes.values()), total)
    return dict(zip(sizes, counts, strict=True))


def layer_shares(
    scores: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    density: float,
    scope: str | Mapping[str, float | int],
) -> dict[str, float]:
    """Density of each tensor, before it is rounded to a count.

    Raises:
        ValueError: as `layer_counts`.
    """
    if not isinstance(scope, str):
        return _given({name: s.numel() for name, s in scores.items()}, scope)
    if scope in ("layer", "uniform"):
        return dict.fromkeys(scores, density)
    if scope == "erk":
        return erk({n: layouts[n].shape if n in layouts else tuple(s.shape) for n, s in scores.items()}, density)
    if scope == "owl":
        return owl(scores, density)
    near = difflib.get_close_matches(scope, SCOPES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SCOPES)} and a mapping of densities"
    raise ValueError(f"no scope is named {scope!r}; {hint}")


def erk(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Density of each tensor in proportion to (sum of its sides) / (product of its sides).

    density_l = eps sum(shape_l) / prod(shape_l), kernel sides included, with eps such that the whole has the density
    asked for; a layer above 1 becomes dense and eps is solved again over the rest (Evci et al. 2020).

    >>> {name: round(d, 3) for name, d in erk({"a": (300, 784), "b": (100, 300), "c": (10, 100)}, 0.1).items()}
    {'a': 0.08, 'b': 0.23, 'c': 1.0}
    """
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = density * sum(size.values()) - sum(size[name] for name in dense)
        scale = left / sum(raw[n] * size[n] for n in raw if n not in dense) if len(dense) < len(raw) else 0.0
        above = {name for name in raw if name not in dense and scale * raw[name] > 1}
        if not above:
            return {name: 1.0 if name in dense else scale * raw[name] for name in raw}
        dense |= above


def owl(
    scores: Mapping[str, Tensor], density: float, *, outlier: float = 5.0, spread: float = 0.08
) -> dict[str, float]:
    """Density of each tensor by its share of outlying scores: layers with more of them keep more.

    D_l = share of the scores above `outlier` times the tensor's mean, rescaled over tensors to [0, 2 spread];
    density_l = density + D'_l - mean D'. The mean is taken over weights, so that the whole has exactly the density
    asked for; a density outside [0, 1] is cut there, and all others shift to make up. All alike where D is.

    (Yin et al. 2024, OWL; the paper takes the mean over layers, which agrees for layers of one size.)
    """
    size = {name: s.numel() for name, s in scores.items()}
    raw = {name: float((s > outlier * s.double().mean()).double().mean()) for name, s in scores.items()}
    low, high = min(raw.values()), max(raw.values())
    if high == low:
        return dict.fromkeys(raw, density)
    moved = {name: (d - low) / (high - low) * 2 * spread for name, d in raw.items()}
    total = sum(size.values())

    def cut(shift: float) -> dict[str, float]:
        return {name: min(1.0, max(0.0, d + shift)) for name, d in moved.items()}

    bottom, top = -1.0 - 2 * spread, 1.0
    for _ in range(100):
        middle = (bottom + top) / 2
        if sum(d * size[name] for name, d in cut(middle).items()) < density * total:
            bottom = middle
        else:
            top = middle
    return cut(top)


def share_out(targets: Sequence[float], caps: Sequence[int], total: int) -> list[int]:
    """Whole numbers near the targets that add up to the total: largest remainders first, ties by index.

    >>> share_out([1.5, 1.5, 2.0], [9, 9, 9], 5)
    [2, 1, 2]
    """
    counts = [min(cap, math.floor(t + 1e-9)) for t, cap in zip(targets, caps, strict=True)]
    order = sorted(range(len(targets)), key=lambda i: (counts[i] - targets[i], i))
    while (short := total - sum(counts)) > 0:
        room = [i for i in order if counts[i] < caps[i]]
        for i in room[:short]:
            counts[i] += 1
    for i in reversed(order):
        surplus = sum(counts) - total
        if surplus > 0:
            counts[i] -= min(surplus, counts[i])
    return counts


def round_half_up(x: float) -> int:
    """Nearest whole number, halves up: the one rule by which a density becomes a count.

    >>> round_half_up(2.5), round_half_up(0.1 * 3 * 10)
    (3, 3)
    """
    return math.floor(x + 0.5)


def _given(sizes: Mapping[str, int], wanted: Mapping[str, float | int]) -> dict[str, float]:
    missing, extra = [n for n in sizes if n not in wanted], [n for n in wanted if n not in sizes]
    if missing or extra:
        what = f"no density for {missing[0]}" if missing else f"{extra[0]} is not prunable"
        raise ValueError(f"scope= as a mapping needs every scored parameter: {what}; there are {', '.join(sizes)}")
    out = {}
    for name, size in sizes.items():
        value = wanted[name]
        share = value / size if isinstance(value, int) else value
        if not 0 <= share <= 1:
            raise ValueError(f"{name} has {size} weights and cannot keep {value}: a density in [0, 1] or a count")
        out[name] = share
    return out
