"""Softmax outputs as points of the standard simplex: distances, log-ratio coordinates, closed forms on an ETF."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nucleate.geometry.simplex import helmert


def vertex_distance(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Euclidean distance |p - e_y| of each softmax output from its class's vertex, (N,) in [0, sqrt 2].

    Args:
        probabilities: (N, C), rows on the standard simplex.
        labels: (N,).

    Raises:
        ValueError: if shapes or labels do not fit.

    >>> vertex_distance(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 1])).tolist()
    [0.7..., 0.0]
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"expected (points, classes) and (points,), not {tuple(probabilities.shape)}, {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < probabilities.shape[1]:
        raise ValueError(f"labels must lie in 0..{probabilities.shape[1] - 1}")
    p = probabilities.double().clone()
    p[torch.arange(len(p), device=p.device), labels.to(p.device).long()] -= 1
    distance: Tensor = torch.linalg.vector_norm(p, dim=1)
    return distance


def clr(p: Tensor) -> Tensor:
    """Centred log-ratio ln p - mean(ln p), float64; the inverse of softmax on centred logits. (Aitchison 1982.)

    >>> clr(torch.softmax(torch.tensor([1.0, 2.0, 3.0]), 0)).round(decimals=4).tolist()
    [-1.0, 0.0, 1.0]
    """
    log = p.double().log()
    return log - log.mean(-1, keepdim=True)


def ilr(p: Tensor) -> Tensor:
    """Isometric log-ratio Q clr(p), (..., C - 1): Euclidean distance there is Aitchison's. (Egozcue et al. 2003.)

    >>> ilr(torch.tensor([0.2, 0.2, 0.2])).tolist()
    [0.0, 0.0]
    """
    return clr(p) @ helmert(p.shape[-1]).to(p.device).T


def ilr_inverse(x: Tensor) -> Tensor:
    """Point of the simplex with ilr coordinates x, softmax(x Q).

    >>> ilr_inverse(torch.zeros(1)).tolist()
    [0.5, 0.5]
    """
    return torch.softmax(x.double() @ helmert(x.shape[-1] + 1).to(x.device), -1)


def aitchison_distance(p: Tensor, q: Tensor) -> Tensor:
    """|clr(p) - clr(q)| along the last axis; unchanged by rescaling either.

    >>> aitchison_distance(torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0])).item()
    0.0
    """
    distance: Tensor = torch.linalg.vector_norm(clr(p) - clr(q), dim=-1)
    return distance


def etf_probability(scale: float, num_classes: int) -> float:
    """Softmax probability of the own class when the logits are `scale` times a unit ETF vertex.

    p = 1 / (1 + (C-1) e^{-t}) with logit margin t = scale C/(C-1); the other classes share 1 - p equally.

    >>> round(etf_probability(9.0, 10), 5)
    0.99959
    """
    return math.exp(-etf_cross_entropy(scale, num_classes))


def etf_cross_entropy(scale: float, num_classes: int) -> float:
    """Cross-entropy ln(1 + (C-1) e^{-t}) of logits on a unit ETF, t = scale C/(C-1); ln C at scale 0.

    >>> round(etf_cross_entropy(0.0, 10), 4)
    2.3026
    """
    return math.log1p((num_classes - 1) * math.exp(-scale * num_classes / (num_classes - 1)))


def etf_scale(probability: float, num_classes: int) -> float:
    """Logit scale that gives the own class this probability on a unit ETF, ((C-1)/C) ln(p (C-1)/(1-p)).

    Raises:
        ValueError: for a probability outside (0, 1).

    >>> round(etf_scale(etf_probability(3.0, 10), 10), 6)
    3.0
    """
    if not 0 < probability < 1:
        raise ValueError(f"a probability strictly between 0 and 1 has a scale, not {probability}")
    c = num_classes
    return (c - 1) / c * math.log(probability * (c - 1) / (1 - probability))
