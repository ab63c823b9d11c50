"""Scores from the weights alone: now, at initialisation, or their layers' shapes. No data, no mode."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nucleate.pruning.criteria.given import Given


def random(given: Given) -> dict[str, Tensor]:
    """U(0, 1), from a generator of (seed, layer): the control of every other score."""
    return {name: _uniform(given, name) for name in given.weights}


def magnitude(given: Given) -> dict[str, Tensor]:
    """|w| (Janowsky 1989; Han et al. 2015). At initialisation it ranks layers by their scale, and empties some."""
    return {name: w.detach().abs() for name, w in given.weights.items()}


def lamp(given: Given) -> dict[str, Tensor]:
    """w_u^2 / sum of w_v^2 over the v of the layer with |w_v| >= |w_u|; the largest of each layer scores 1.

    Compared globally, so that no layer empties before fewer weights than layers are left. The sum starts at the large
    end, in float64: a total less what came before cancels for the largest (Lee et al. 2021, LAMP).
    """
    out = {}
    for name, w in given.weights.items():
        square = w.detach().double().flatten().square()
        sorted_, order = square.sort(descending=True, stable=True)
        sums = sorted_.cumsum(0)
        # Equal weights share the sum over all of them.
        last = torch.searchsorted(-sorted_, -sorted_, right=True) - 1
        score = torch.zeros_like(square)
        score[order] = torch.where(sums[last] > 0, sorted_ / sums[last].clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        out[name] = score.view_as(w)
    return out


def erk(given: Given) -> dict[str, Tensor]:
    """(sum of the sides / product of the sides) / U(0, 1): random weights at ERK densities under a global threshold.

    P(score > t) = min(1, factor / t), which is the law of densities proportional to the factor, cut at 1 (Mocanu et
    al. 2018; Evci et al. 2020). Structure only.
    """
    out = {}
    for name, w in given.weights.items():
        factor = sum(w.shape) / math.prod(w.shape)
        out[name] = factor / _uniform(given, name).double().clamp_min(torch.finfo(torch.float32).tiny)
    return out


def large_init(given: Given) -> dict[str, Tensor]:
    """|w0|, the size at initialisation (Zhou et al. 2019, as all that follow)."""
    return {name: w.abs() for name, w in given.initials().items()}


def small_init(given: Given) -> dict[str, Tensor]:
    """-|w0|."""
    return {name: -w.abs() for name, w in given.initials().items()}


def small_final(given: Given) -> dict[str, Tensor]:
    """-|w|."""
    return {name: -w.detach().abs() for name, w in given.weights.items()}


def magnitude_increase(given: Given) -> dict[str, Tensor]:
    """|w| - |w0|."""
    return _pairs(given, lambda w, w0: w.abs() - w0.abs())


def distance(given: Given) -> dict[str, Tensor]:
    """|w - w0|: what Zhou et al. call movement."""
    return _pairs(given, lambda w, w0: (w - w0).abs())


def large_init_large_final(given: Given) -> dict[str, Tensor]:
    """The lower of the two ranks that |w0| and |w| have in their layer, 0 to 1.

    Keeping what lies above a quantile of both is keeping the largest of this, whatever the quantile; the published code
    looks for that quantile by bisection, which leaves its counts approximate.
    """
    return _pairs(given, lambda w, w0: torch.minimum(_ranks(w.abs()), _ranks(w0.abs())))


def small_init_small_final(given: Given) -> dict[str, Tensor]:
    """The lower of the two ranks that -|w0| and -|w| have in their layer."""
    return _pairs(given, lambda w, w0: torch.minimum(_ranks(-w.abs()), _ranks(-w0.abs())))


def large_final_same_sign(given: Given) -> dict[str, Tensor]:
    """|w| where w and w0 have the same sign, else 0."""
    return _pairs(given, lambda w, w0: torch.where(w.sign() == w0.sign(), w.abs(), 0))


def large_final_diff_sign(given: Given) -> dict[str, Tensor]:
    """|w| where w and w0 differ in sign, else 0."""
    return _pairs(given, lambda w, w0: torch.where(w.sign() != w0.sign(), w.abs(), 0))


def magnitude_increase_same_sign(given: Given) -> dict[str, Tensor]:
    """|w| - |w0| where w and w0 have the same sign, else 0: those outrank weights that shrank."""
    return _pairs(given, lambda w, w0: torch.where(w.sign() == w0.sign(), w.abs() - w0.abs(), 0))


def magnitude_increase_diff_sign(given: Given) -> dict[str, Tensor]:
    """|w| - |w0| where w and w0 differ in sign, else 0."""
    return _pairs(given, lambda w, w0: torch.where(w.sign() != w0.sign(), w.abs() - w0.abs(), 0))


def _uniform(given: Given, name: str) -> Tensor:
    w = given.weights[name]
    return torch.rand(w.shape, generator=given.generator(name)).to(w.device)


def _pairs(given: Given, score: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    initial = given.initials()
    return {name: score(w.detach(), initial[name].to(w.dtype)) for name, w in given.weights.items()}


def _ranks(x: Tensor) -> Tensor:
    """Rank of every entry, 0 to 1 from the smallest up; equal entries in order of index, the first ranks highest."""
    flat = x.flatten()
    order = flat.sort(descending=True, stable=True).indices
    ranks = torch.empty(len(flat), dtype=torch.float64, device=x.device)
    ranks[order] = torch.linspace(1, 0, len(flat), dtype=torch.float64, device=x.device)
    return ranks.view_as(x)
