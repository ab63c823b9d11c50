"""Hyperspherical uniformity: how evenly directions are spread, by the energy of their pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Energy:
    """Energies of all pairs of directions."""

    mean: float
    variance: float
    """Over the pairs, divided by their number; 0 where all are equally far apart, as at a simplex."""


@torch.no_grad()
def hyperspherical_energy(rows: Tensor, kernel: Literal["distance", "log"] | float = "log") -> Energy:
    """Mean and variance over pairs of a kernel of the distance D = |u_i - u_j| of rows scaled to length one, float64.

    "distance" is D itself, "log" is ln(1/D), a number s is the Riesz energy sign(s) D^-s, of which s = d - 2 is the
    usual choice. At a simplex, D = sqrt(2C/(C - 1)) for every pair. O(C^2 d).

    Args:
        rows: (C, d); class means or classifier rows, centred, to be compared with a simplex.
        kernel: of the distances.

    Raises:
        ValueError: for fewer than two rows, a row of length zero, an unknown kernel or s = 0.

    >>> hyperspherical_energy(torch.tensor([[2.0], [-1.0]]), "distance")
    Energy(mean=2.0, variance=0.0)

    (Liu et al. 2023, arXiv 2303.06484; with "log" the GNC2 of Wu and Papyan 2024, arXiv 2405.17767.)
    """
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"expected at least two rows (classes, dimensions), not {tuple(rows.shape)}")
    length = torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise ValueError(f"row {int((length[:, 0] <= 0).nonzero()[0])} has length zero and no direction")
    apart = torch.pdist(rows.double() / length)
    if kernel == "distance":
        energy = apart
    elif kernel == "log":
        energy = -apart.log()
    elif isinstance(kernel, int | float) and kernel:
        energy = apart.pow(-kernel) if kernel > 0 else -apart.pow(-kernel)
    else:
        raise ValueError(f"the kernel is distance, log or a number other than 0, not {kernel!r}")
    return Energy(float(energy.mean()), float(energy.var(correction=0)))
