"""Points made on the spot: every label gets a point from a generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A synthetic source: how many classes and points it has by default, and how a point is made of its label."""

    points: Callable[[Tensor, Generator], Tensor]
    """Labels (N,) and a generator -> float32 inputs (N, d)."""
    class_names: tuple[str, ...]
    train_size: int
    test_size: int
    superclasses: tuple[int, ...] | None = None


def blobs(labels: Tensor, generator: Generator) -> Tensor:
    """Four round Gaussian blobs in the plane, standard deviation 0.35, centres on a circle of radius 2.

    >>> blobs(torch.tensor([0, 1, 2, 3]), Generator().manual_seed(0)).shape
    torch.Size([4, 2])
    """
    angle = labels * (2 * math.pi / 4)
    centres = 2.0 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + 0.35 * torch.randn(len(labels), 2, generator=generator)


def spirals(labels: Tensor, generator: Generator) -> Tensor:
    """Three spiral arms in the plane, three quarters of a turn each, that no straight line separates.

    Radius r uniform in [0.15, 1], angle 2 pi (y / 3 + 3 r / 4), Gaussian noise of standard deviation 0.02.

    >>> bool(spirals(torch.zeros(9).long(), Generator().manual_seed(0)).norm(dim=1).max() < 1.2)
    True
    """
    radius = 0.15 + 0.85 * torch.rand(len(labels), generator=generator)
    angle = 2 * math.pi * (labels / 3 + 0.75 * radius)
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.02 * torch.randn(len(labels), 2, generator=generator)


SYNTHETIC: dict[str, Synthetic] = {
    "blobs": Synthetic(points=blobs, class_names=("east", "north", "west", "south"), train_size=800, test_size=800),
    "spirals": Synthetic(points=spirals, class_names=("a", "b", "c"), train_size=900, test_size=900),
}
"""Every synthetic source; sizes apply where the spec names none."""
