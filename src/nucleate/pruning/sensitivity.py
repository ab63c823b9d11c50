"""What each layer can bear: one layer pruned at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nucleate.probes.tap import evaluating
from nucleate.pruning.coverage import Extra, parameters
from nucleate.pruning.criteria.given import Batches, Loss
from nucleate.pruning.scores import Criterion, Scores, scores
from nucleate.pruning.select import check_density, select

DENSITIES = (0.8, 0.5, 0.3, 0.2, 0.1, 0.05)


def sensitivity(
    model: nn.Module,
    method: str | Criterion,
    measure: Callable[[nn.Module], float],
    *,
    densities: Sequence[float] = DENSITIES,
    batches: Batches | None = None,
    loss: Loss | None = None,
    shape: str = "weight",
    layers: Any = None,
    include: Sequence[Extra] = (),
    initial: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[float, float]]:
    """Measure of the model with one layer pruned to each density and all others whole; under 1.0 the model as it is.

    Scores are taken once, from the whole model. The model comes out as it went in. `measure` runs in eval mode.

    Args:
        measure: model -> number, an accuracy or a loss.
        densities: kept shares, each in (0, 1].
        progress: show a bar.
        method, batches, loss, shape, layers, include, initial, seed: as `prune`.

    Raises:
        ValueError: as `scores` and `select`.

    >>> net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
    >>> sensitivity(net, "magnitude", lambda m: float(m[0].weight.sum()), densities=(0.125,))
    {'0.weight': {1.0: 10.0, 0.125: 7.0}}
    """
    for density in densities:
        check_density(density)
    found = scores(model, method, batches, loss, layers=layers, include=include, initial=initial, seed=seed)
    own = dict(parameters(model))
    whole = _measured(model, measure)
    out: dict[str, dict[float, float]] = {name: {1.0: whole} for name in found}
    with tqdm(total=len(found) * len(densities), disable=not progress, desc="layers x densities") as bar:
        for name, score in found.items():
            alone = Scores({name: score}, layout={name: found.layout[name]})
            for density in densities:
                masks = select(alone, density, scope="layer", shape=shape, allow_empty=True)
                before = {n: own[n].detach().clone() for n in masks}
                masks.apply(model)
                try:
                    out[name][density] = _measured(model, measure)
                finally:
                    with torch.no_grad():
                        for n, w in before.items():
                            own[n].copy_(w)
                bar.update()
    return out


def _measured(model: nn.Module, measure: Callable[[nn.Module], float]) -> float:
    with evaluating(model), torch.no_grad():
        return float(measure(model))
