"""Random features: a wide two-layer network of which only the last layer is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

Kind = Literal["relu", "fourier"]


@dataclass(frozen=True)
class RandomFeatures:
    """Features of points, drawn once: the first N of them are those of a narrower model.

    relu: relu(w.x + b) with w ~ N(0, 1), b ~ N(0, 0.1^2) (Rahimi, Recht 2008; the kernel is an arc-cosine).
    fourier: sqrt(2) cos(w.x + b) with w ~ N(0, 1.5^2), b uniform on [0, 2 pi): the kernel exp(-9 |x - z|^2 / 8)
    (Rahimi, Recht 2007). Both are divided by sqrt(N), so that their kernel has a limit. Inputs are centred on the
    training mean and divided by the mean norm of the training points.
    """

    weights: Tensor
    offsets: Tensor
    kind: Kind
    centre: Tensor
    scale: float

    def __call__(self, x: Tensor, count: int) -> Tensor:
        """First `count` features (n, count), float64, of points (n, ...).

        Raises:
            ValueError: for fewer than one feature, or more than were drawn.
        """
        if not 1 <= count <= self.weights.shape[1]:
            raise ValueError(f"the number of features must be in 1 .. {self.weights.shape[1]}, not {count}")
        z = (x.flatten(1).double() - self.centre) / self.scale
        z = torch.addmm(self.offsets[:count], z, self.weights[:, :count])
        z = z.relu_() if self.kind == "relu" else z.cos_().mul_(math.sqrt(2))
        return z.div_(math.sqrt(count))


def draw_features(x: Tensor, count: int, *, kind: Kind = "relu", generator: Generator) -> RandomFeatures:
    """Draw `count` features for points like the training points x (n, ...).

    Raises:
        ValueError: for an unknown kind, fewer than one feature, or training points that are all the same.

    >>> x = torch.randn(20, 3, generator=Generator().manual_seed(0))
    >>> features = draw_features(x, 100000, kind="fourier", generator=Generator().manual_seed(1))
    >>> f = features(x, 100000)  # <f(x), f(z)> is close to the Gaussian kernel
    >>> near = torch.cdist(x.double(), x.double())[0, 1] / features.scale
    >>> abs(float(f[0] @ f[1]) - math.exp(-1.125 * float(near) ** 2)) < 0.01
    True
    """
    if kind not in ("relu", "fourier"):
        raise ValueError(f"features must be relu or fourier, not {kind!r}")
    if count < 1:
        raise ValueError(f"the number of features must be at least 1, not {count}")
    points = x.flatten(1).double()
    centre = points.mean(0)
    scale = float((points - centre).norm(dim=1).mean())
    if not scale > 0:
        raise ValueError("all training points are the same: there is nothing to draw features for")
    # Column by column, so that a narrower model has the first columns of a wider one.
    w = torch.randn(count, points.shape[1], generator=generator, dtype=torch.float64).T
    b = torch.rand(count, generator=generator, dtype=torch.float64)
    if kind == "relu":
        b = 0.1 * math.sqrt(2) * torch.erfinv((2 * b - 1).clamp(-1 + 1e-12, 1 - 1e-12))
    else:
        w, b = 1.5 * w, 2 * math.pi * b
    return RandomFeatures(w, b, kind, centre, scale)
