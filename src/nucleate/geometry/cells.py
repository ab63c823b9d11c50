"""Cells of a piecewise linear network: which units are on for a point, and how many points are alone in their cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class CellCount:
    """How the points fall into cells: `own_share` is the share of points that are alone in theirs."""

    points: int
    units: int
    cells: int
    largest: int
    own_share: float


class Cells:
    """Count activation patterns over batches; memory for one 16-byte digest a cell, whatever the number of units.

    >>> cells = Cells()
    >>> cells.update(torch.tensor([[1.0, -1.0], [2.0, -3.0], [-1.0, 4.0]]))
    >>> cells.compute().cells, round(cells.compute().own_share, 3)
    (2, 0.333)
    """

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()
        self.units = 0

    def update(self, activations: Tensor | Sequence[Tensor]) -> None:
        """Add a batch: (B, ...) pre-activations (on means > 0) or booleans, of one layer or a list of layers.

        Raises:
            ValueError: for NaN, layers of different batch sizes, or another number of units than before.
        """
        patterns = activation_patterns(activations)
        if self.units and patterns.shape[1] != self.units:
            raise ValueError(f"this batch has {patterns.shape[1]} units and the ones before had {self.units}")
        self.units = patterns.shape[1]
        self.counts.update(_digests(patterns.cpu().numpy()))

    def merge(self, other: Cells) -> None:
        """Add the points that another object saw.

        Raises:
            ValueError: for another number of units.
        """
        if self.units and other.units and self.units != other.units:
            raise ValueError(f"patterns of {self.units} and of {other.units} units cannot be merged")
        self.units = self.units or other.units
        self.counts.update(other.counts)

    def compute(self) -> CellCount:
        """The counts so far; own_share is nan before the first point."""
        points = self.counts.total()
        sizes = Counter(self.counts.values())
        share = sizes[1] / points if points else math.nan
        return CellCount(points, self.units, len(self.counts), max(sizes, default=0), share)


@torch.no_grad()
def activation_patterns(activations: Tensor | Sequence[Tensor]) -> Tensor:
    """Which units are on: (N, units) booleans from (N, ...) pre-activations (> 0) or booleans, layers side by side.

    Raises:
        ValueError: for NaN, no layer, a layer without a batch dimension, or layers of different batch sizes.

    >>> activation_patterns([torch.tensor([[0.5, 0.0]]), torch.tensor([[True]])]).tolist()
    [[True, False, True]]
    """
    layers = [activations] if isinstance(activations, Tensor) else list(activations)
    if not layers:
        raise ValueError("activation_patterns: no layer was given")
    parts = []
    for number, layer in enumerate(layers):
        if layer.ndim < 1 or len(layer) != len(layers[0]):
            raise ValueError(
                f"layer {number} has shape {tuple(layer.shape)}; every layer needs {len(layers[0])} points"
            )
        if layer.is_floating_point() and bool(layer.isnan().any()):
            raise ValueError(f"layer {number} holds NaN: neither on nor off; repair it or leave these points out")
        on = layer if layer.dtype == torch.bool else layer > 0
        parts.append(on.reshape(len(layer), math.prod(layer.shape[1:])))
    return torch.cat(parts, 1)


def _digests(patterns: NDArray[np.bool_]) -> list[bytes]:
    """16 bytes for every row of an (N, units) array.

    Four multilinear hashes, floor((a_0 + sum_i a_i x_i mod 2^64) / 2^32) of the 32-bit words x_i with random a_i below
    2^64: two rows agree with probability 2^-128 (Lemire, Kaser 2014, Strongly universal string hashing is fast).
    """
    points, units = patterns.shape
    words = -(-units // 32)
    packed = np.zeros((points, 4 * words), np.uint8)
    packed[:, : -(-units // 8)] = np.packbits(patterns, axis=1)
    drawn = np.random.default_rng(0).integers(2**64, size=(words + 1, 4), dtype=np.uint64)
    sums = packed.view(np.uint32).astype(np.uint64) @ drawn[1:] + drawn[0]
    return list((sums >> np.uint64(32)).astype(np.uint32).view("V16").ravel().tolist())


def own_cell_share(activations: Tensor | Sequence[Tensor]) -> float:
    """Share of points whose activation pattern no other point has.

    >>> own_cell_share(torch.tensor([[1.0, -1.0], [2.0, -3.0], [-1.0, 4.0], [1.0, 1.0]]))
    0.5
    """
    cells = Cells()
    cells.update(activations)
    return cells.compute().own_share
