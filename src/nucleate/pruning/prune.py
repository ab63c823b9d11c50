"""Scores, selection and application in one call, with a record of what happened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nucleate.pruning.coverage import Coverage, Extra
from nucleate.pruning.criteria.given import Batches, Loss
from nucleate.pruning.masks import Masks
from nucleate.pruning.scores import Criterion, Scores, scores
from nucleate.pruning.select import check_density, select


@dataclass(frozen=True)
class Pruning:
    """What was pruned, how, and what was not."""

    masks: Masks
    coverage: Coverage
    record: dict[str, Any]
    """Method, shape, scope, seed, mode and precision, examples used, counts by layer and over all parameters."""


def prune(
    model: nn.Module,
    method: str | Criterion,
    density: float,
    *,
    batches: Batches | None = None,
    loss: Loss | None = None,
    scope: str | Mapping[str, float | int] = "global",
    shape: str = "weight",
    layers: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None = None,
    include: Sequence[Extra] = (),
    masks: Mapping[str, Tensor] | None = None,
    initial: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    allow_empty: bool = False,
) -> Pruning:
    """Score, select, and set the pruned weights to zero in place.

    Training afterwards needs the masks again after every optimizer step: `Pruner`, or `masks.apply`.

    Args:
        model: any module; its weights change in place.
        method, batches, loss, layers, include, initial, seed: as `scores`.
        density: kept share of the prunable weights, in (0, 1].
        scope, shape, allow_empty: as `select`.
        masks: what earlier rounds left.

    Raises:
        ValueError: as `coverage`, `scores` and `select`; the model is then as it was.

    >>> net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> done = prune(net, "magnitude", 0.2)
    >>> done.masks.kept, int((net[0].weight != 0).sum())
    (20, 20)
    """
    check_density(density)
    found = scores(
        model,
        method,
        batches,
        loss,
        layers=layers,
        include=include,
        masks=masks,
        initial=initial,
        seed=seed,
    )
    chosen = select(found, density, scope=scope, shape=shape, allow_empty=allow_empty)
    chosen.apply(model)
    assert found.coverage is not None
    return Pruning(chosen, found.coverage, recorded(found, chosen, density, scope, shape))


def recorded(
    found: Scores, masks: Masks, density: float, scope: str | Mapping[str, float | int], shape: str
) -> dict[str, Any]:
    """The record of one pruning event, ready for JSON."""
    assert found.coverage is not None
    covered = found.coverage
    pruned = masks.count - masks.kept
    return found.record | {
        "density": density,
        "scope": scope if isinstance(scope, str) else dict(scope),
        "shape": shape,
        "kept": masks.kept,
        "prunable": masks.count,
        "parameters": covered.parameters,
        "density_of_all": (covered.parameters - pruned) / covered.parameters,
        "layers": masks.densities,
        "not_pruned": {row.name: f"{row.status}: {row.why}" for row in covered.rows if row.status != "prunable"},
    }
