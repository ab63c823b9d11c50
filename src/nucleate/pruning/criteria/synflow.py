"""Scores from how signals flow: no data but the shape of an input."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.pruning.coverage import parameters
from nucleate.pruning.criteria.given import Given, logits, run
from nucleate.pruning.masks import Masks


def synflow(given: Given) -> dict[str, Tensor]:
    """|w dR/dw|, where R is the sum of the outputs for an input of ones and every parameter is its absolute value.

    Eval mode, float64 (deep networks leave the range of float32), on a copy. Running means are taken as 0: they are
    what subtracting would make signals negative by; running variances stay. Without biases or normalisation the scores
    of every layer add up to R. One round empties layers as other scores do; prune in 100 (Tanaka et al. 2020).
    """
    return _flow(given, torch.abs)


def path_counts(given: Given) -> dict[str, Tensor]:
    """Number of paths from input to output through each live weight: SynFlow with all weights 1. Structure only."""

    def one(w: Tensor) -> Tensor:
        return torch.ones_like(w)

    return _flow(given, one)


def _flow(given: Given, replace: Any) -> dict[str, Tensor]:
    model = copy.deepcopy(given.model).double().eval()
    given.used.update({"mode": "eval", "precision": "float64"})
    own = dict(parameters(model))
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(replace(p) if name in given.weights else p.abs())
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.zero_()
        if given.masks is not None:
            Masks({name: m for name, m in given.masks.items() if name in own}).apply(model)
    inputs, _ = next(given.data())
    held = [own[name].requires_grad_(True) for name in given.weights]
    output = logits(run(model, _ones(inputs)))
    total = output.sum()
    if not bool(torch.isfinite(total)):
        raise ValueError("synflow: the flow leaves the range of float64; limit it to fewer layers")
    grads = torch.autograd.grad(total, held, allow_unused=True)
    return {
        name: torch.zeros_like(w) if g is None else (w * g).detach().abs()
        for name, w, g in zip(given.weights, held, grads, strict=True)
    }


def _ones(inputs: Any) -> Any:
    """One example of ones in the shape of the inputs; token indices stay what they are."""
    if isinstance(inputs, Tensor):
        one = inputs[:1]
        return torch.ones_like(one, dtype=torch.float64) if one.is_floating_point() else one
    if isinstance(inputs, dict):
        return {k: _ones(v) for k, v in inputs.items()}
    return tuple(_ones(v) for v in inputs) if isinstance(inputs, tuple | list) else inputs
