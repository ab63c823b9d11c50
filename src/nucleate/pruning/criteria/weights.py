"""Scores from the weights alone: now, at initialisation, or their layers' shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from nucleate.pruning.criteria.given import Given


def random(given: Given) -> dict[str, Tensor]:
    """U(0, 1), from a generator of (seed, layer): the control of every other score."""
    return {
        name: torch.rand(w.shape, generator=given.generator(name)).to(w.device) for name, w in given.weights.items()
    }


def magnitude(given: Given) -> dict[str, Tensor]:
    """|w| (Janowsky 1989; Han et al. 2015)."""
    return {name: w.abs() for name, w in given.weights.items()}
