"""Unequal classes: minority collapse, and the geometry that replaces the ETF."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nucleate.geometry.means import cosines


def minority_angle(weight: Tensor, counts: Tensor, *, minority: Tensor | None = None) -> float:
    """Mean cosine between the classifier rows of minority classes: -1/(C-1) at a simplex, 1 when they have merged.

    Args:
        weight: (C, d) classifier rows (centred, for a simplex to read -1/(C-1)).
        counts: (C,) training points.
        minority: (C,) mask; the classes with fewer points than the mean count if none.

    Returns:
        nan with fewer than two minority classes.

    >>> minority_angle(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([10, 1, 1]))
    1.0

    (After Fang et al. 2021, arXiv 2101.12699.)
    """
    n = counts.double()
    few = (n > 0) & (n < n[n > 0].mean()) if minority is None else minority.bool()
    k = int(few.sum())
    if k < 2:
        return math.nan
    cos = cosines(weight[few])
    return float((cos.sum() - cos.diagonal().sum()) / (k * (k - 1)))


@torch.no_grad()
def seli_targets(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices (C, C) of classifier and class means that replace the ETF under imbalance: B^{1/2} and (B^+)^{1/2}.

    B = P diag(n) P with P = I - J/C, from the simplex-encoded labels; both are P up to scale for equal counts.

    Raises:
        ValueError: for an absent class, or fewer than two.

    >>> w, m = seli_targets(torch.tensor([4, 4]))
    >>> w.round(decimals=6).tolist(), m.round(decimals=6).tolist()
    ([[1.0, -1.0], [-1.0, 1.0]], [[0.25, -0.25], [-0.25, 0.25]])

    (Thrampoulidis et al. 2022, arXiv 2208.05512.)
    """
    n = counts.double()
    if len(n) < 2 or not bool((n > 0).all()):
        raise ValueError("SELI targets need at least two classes, each with points")
    p = torch.eye(len(n), dtype=n.dtype, device=n.device) - 1 / len(n)
    values, vectors = torch.linalg.eigh(p @ torch.diag(n) @ p)
    # B has exactly one null direction, the ones vector: dropped by index.
    root, vectors = values[1:].sqrt(), vectors[:, 1:]
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


@torch.no_grad()
def seli_distance(rows: Tensor, target: Tensor) -> float:
    """Distance |nrm(A A^T) - nrm(T)|_F of the rows' Gram matrix from a target of `seli_targets`; 0 where it is reached.

    >>> seli_distance(torch.tensor([[1.0], [-1.0]]), seli_targets(torch.tensor([3, 3]))[0])
    0.0
    """
    a = rows.double()
    gram = a @ a.T
    return float(
        torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - target / torch.linalg.matrix_norm(target))
    )
