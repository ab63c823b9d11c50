"""Scores, selection and application in one call, with a record of what happened."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.pruning.coverage import Coverage, Extra, parameters
from nucleate.pruning.criteria.given import Batches, Loss
from nucleate.pruning.masks import Masks
from nucleate.pruning.scores import Criterion, Scores, scores
from nucleate.pruning.select import check_density, select

ROUNDS = {"synflow": 100, "path_counts": 100}
"""Methods that empty layers unless they prune in rounds."""


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
    rounds: int | None = None,
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
        rounds: score, select and apply this often, keeping density^(k / rounds) after round k (relative to what
            `masks` left); 100 for "synflow" and "path_counts", else 1, if none.

    Raises:
        ValueError: as `coverage`, `scores` and `select`; the model is then as it was.

    >>> net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> done = prune(net, "magnitude", 0.2)
    >>> done.masks.kept, int((net[0].weight != 0).sum())
    (20, 20)
    """
    return decided(
        model,
        method,
        density,
        agree=lambda found: found,
        batches=batches,
        loss=loss,
        scope=scope,
        shape=shape,
        layers=layers,
        include=include,
        masks=masks,
        initial=initial,
        seed=seed,
        rounds=rounds,
        allow_empty=allow_empty,
    )


def decided(
    model: nn.Module,
    method: str | Criterion,
    density: float,
    *,
    agree: Callable[[Masks], Masks],
    batches: Batches | None,
    loss: Loss | None,
    scope: str | Mapping[str, float | int],
    shape: str,
    layers: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None,
    include: Sequence[Extra],
    masks: Mapping[str, Tensor] | None,
    initial: Mapping[str, Tensor] | None,
    seed: int,
    rounds: int | None,
    allow_empty: bool,
) -> Pruning:
    """`prune`, with a say for others before masks are applied: processes must agree while all weights are there."""
    density = check_density(density)
    # Patterns and given densities leave nothing to approach in steps.
    stepwise = isinstance(scope, str) and ":" not in shape.removeprefix("block:")
    usual = ROUNDS.get(method, 1) if isinstance(method, str) and stepwise else 1
    count = rounds if rounds is not None else usual
    if count < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    start = 1.0 if masks is None else Masks(masks).density
    before: dict[str, Tensor] = {}
    left = masks
    try:
        for k in range(1, count + 1):
            found = scores(
                model,
                method,
                batches,
                loss,
                layers=layers,
                include=include,
                masks=left,
                initial=initial,
                seed=seed,
                lazy=True,
            )
            now = density if k == count else start * (density / start) ** (k / count)
            left = chosen = agree(select(found, now, scope=scope, shape=shape, allow_empty=allow_empty))
            if k < count and not before:
                before = {name: w.detach().clone() for name, w in chosen.find(model).items()}
            chosen.apply(model)
    except ValueError:
        with torch.no_grad():
            for name, w in parameters(model):
                if name in before:
                    w.copy_(before[name])
        raise
    assert found.coverage is not None
    return Pruning(chosen, found.coverage, recorded(found, chosen, density, scope, shape) | {"rounds": count})


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
