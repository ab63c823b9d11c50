"""Scores of second order: half the curvature times the weight squared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nucleate.pruning.criteria.given import Given, size
from nucleate.pruning.criteria.gradients import Sums, derivative, loss_of, mode

PROBES = 16
"""Random signs drawn for each batch by `hutchinson`."""


def fisher(given: Given) -> dict[str, Tensor]:
    """w^2 / 2 times the mean over examples of the squared gradient of that example's loss. Eval mode.

    Optimal brain damage (LeCun, Denker, Solla 1990) with the diagonal of the empirical Fisher matrix for the Hessian.
    The square of a batch's mean gradient is another, smaller quantity, so examples go one by one.
    """
    with mode(given, training=False):
        total = Sums()
        for inputs, targets in given.data():
            for i in range(size(inputs)):
                loss = loss_of(given, _one(inputs, i), _one(targets, i))
                for name, g in derivative(loss, given).items():
                    total.add(name, g.double().square(), 1)
        return _half_square(given, total.means())


def hutchinson(given: Given, *, probes: int = PROBES) -> dict[str, Tensor]:
    """w^2 / 2 times the Hessian's diagonal, estimated by the mean of z (H z) over random signs z. Eval mode.

    Its expectation is exact, its spread falls as 1 / sqrt(probes x batches); negative where the loss curves down
    (Hutchinson 1990; Yao et al. 2021).
    """
    with mode(given, training=False, twice=True):
        total = Sums()
        generators = {name: given.generator(name) for name in given.weights}
        for inputs, targets in given.data():
            grads = derivative(loss_of(given, inputs, targets), given, graph=True)
            for probe in range(probes):
                signs = {
                    name: (torch.randint(2, w.shape, generator=generators[name]) * 2 - 1).to(w)
                    for name, w in given.weights.items()
                }
                product: Any = sum((grads[name] * z).sum() for name, z in signs.items())
                held = derivative(product, given, keep=probe + 1 < probes)
                for name, h in held.items():
                    total.add(name, signs[name].double() * h.double(), size(inputs))
        given.used["probes"] = probes
        return _half_square(given, total.means())


def _half_square(given: Given, diagonal: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: 0.5 * given.weights[name].detach().double().square() * h for name, h in diagonal.items()}


def _one(x: Any, i: int) -> Any:
    """The i-th example of a batch, as a batch of one."""
    if isinstance(x, Tensor):
        return x[i : i + 1]
    if isinstance(x, Mapping):
        return {k: _one(v, i) for k, v in x.items()}
    return tuple(_one(v, i) for v in x) if isinstance(x, tuple | list) else x
