"""What is left of a pruned network, as rows that the report draws: inputs, filters, sizes of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nucleate.pruning.masks import Masks

BINS = 60
REACH = 6.0
"""Weights are counted between -6 and 6 standard deviations of their layer's initial values."""

Value = tuple[str, dict[str, float], float]
"""Metric, place, value."""


def inputs_kept(masks: Masks, shape: tuple[int, ...]) -> list[Value]:
    """Weights that each input position keeps in a first linear map, summed over channels; row 0 is the picture's last.

    >>> masks = Masks({"w": torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.uint8)})
    >>> [(at["row"], at["column"], kept) for _, at, kept in inputs_kept(masks, (1, 2, 2))]
    [(1, 0, 2.0), (1, 1, 0.0), (0, 0, 1.0), (0, 1, 1.0)]
    """
    first = next(iter(masks.values()))
    if first.ndim != 2 or len(shape) != 3 or first.shape[1] != math.prod(shape):
        return []
    return _picture("input_weights", first.sum(0, dtype=torch.int64).view(shape).sum(0).double())


def filters(model: nn.Module, masks: Masks) -> list[Value]:
    """The first layer's kernels side by side, summed over input channels, a gap between them; nothing for other layers.

    Kernels are sorted by how many weights they keep, so that those that are gone come last.
    """
    name = next(iter(masks))
    kernels = model.get_parameter(name).detach()
    if kernels.ndim != 4:
        return []
    order = masks[name].flatten(1).sum(1, dtype=torch.int64).argsort(descending=True, stable=True)
    tiles = kernels[order].sum(1).double().cpu()
    count, height, width = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    mosaic = torch.full((rows * (height + 1) - 1, columns * (width + 1) - 1), math.nan, dtype=torch.float64)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        mosaic[top : top + height, left : left + width] = tile
    return _picture("first_filters", mosaic)


def sizes(model: nn.Module, initial: Mapping[str, Tensor], names: list[str], masks: Masks | None) -> list[Value]:
    """Share of the kept weights in each bin of w over the standard deviation of its layer's initial weights."""
    edges = torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64)
    counts = torch.zeros(BINS, dtype=torch.float64)
    for name in names:
        w = model.get_parameter(name).detach().double().cpu()
        kept = w if masks is None else w[masks[name].cpu().bool()]
        counts += torch.histogram(kept.flatten() / initial[name].double().std().clamp_min(1e-300), edges).hist
    total = float(counts.sum())
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return [
        ("weight_sizes", {"size": round(m, 6)}, float(c) / total) for m, c in zip(middles, counts, strict=True) if c
    ]


def _picture(metric: str, values: Tensor) -> list[Value]:
    rows, columns = values.shape
    return [
        (metric, {"row": rows - 1 - i, "column": j}, float(values[i, j]))
        for i in range(rows)
        for j in range(columns)
        if math.isfinite(float(values[i, j]))
    ]
