"""What is measured on a fixed set of held-out points: neighbours, dimensions, density peaks, attacks, corruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from nucleate.geometry.density import density_peaks
from nucleate.geometry.dimension import participation, two_nn
from nucleate.geometry.neighbours import Neighbours, chi, layer_overlap
from nucleate.probes.corruptions import corruption_accuracy
from nucleate.probes.robustness import correct, fgsm, pgd, smallest_perturbation
from nucleate.spec import MeasureSpec
from nucleate.studies.pictures import Arrays

Value = tuple[str, str, str, float] | tuple[str, str, str, float, dict[str, Any]]
"""Layer, split, metric, value, and what more its record says."""


def neighbourhoods(
    features: Mapping[str, Tensor],
    labels: Tensor,
    k: int,
    search: Callable[[str, Tensor, int], Neighbours],
    coarse: Tensor | None,
) -> list[Value]:
    """chi, overlap with the next layer, dimensions and, where labels have coarse groups, density peaks of each layer.

    Args:
        features: layer -> (N, d), in depth order.
        labels: (N,).
        k: neighbours, fewer than points.
        search: (layer, features, k) -> their nearest neighbours.
        coarse: (N,) labels of coarse groups, if there are any.
    """
    rows: list[Value] = []
    before: tuple[str, Neighbours] | None = None
    for name, h in features.items():
        found = search(name, h, k)
        hit = chi(h, labels, k, found=found)
        told = {"k": k, "low": hit.low, "high": hit.high, "chance": hit.chance, "tied": hit.tied}
        rows.append((name, "test", "chi", hit.value, told))
        rows += _dimensions(name, h, found)
        if before is not None:
            shared = layer_overlap(before[1], found)
            told = {"k": k, "low": shared.low, "high": shared.high, "chance": shared.chance, "tied": shared.tied}
            rows.append((before[0], "test", "overlap_next", shared.value, told))
        before = name, found
        if coarse is not None:
            rows += _peaks(name, h, labels, coarse)
    return rows


def _dimensions(layer: str, h: Tensor, found: Neighbours) -> list[Value]:
    """Two-NN dimension, with two standard errors, and participation ratio; what is not defined says why."""
    p = participation(h)
    out: list[Value] = [(layer, "test", "participation_ratio", p.value, {"chance": p.chance, **_why(p.reason)})]
    if found.indices.shape[1] >= 2:
        d = two_nn(h, found=found)
        told = {"low": d.value - 2 * d.stderr, "high": d.value + 2 * d.stderr, **_why(d.reason)}
        out.append((layer, "test", "intrinsic_dimension", d.value, told))
    return out


def _why(reason: str | None) -> dict[str, str]:
    return {"reason": reason} if reason else {}


def _peaks(layer: str, h: Tensor, labels: Tensor, coarse: Tensor) -> list[Value]:
    """Agreement of the density peaks with coarse groups and with classes (adjusted Rand index)."""
    try:
        found = density_peaks(h).labels.cpu()
    except ValueError:
        # Points that all coincide have no density; the measure is absent for this layer.
        return []
    return [
        (layer, "test", "ari_coarse", float(adjusted_rand_score(coarse.cpu(), found))),
        (layer, "test", "ari_fine", float(adjusted_rand_score(labels.cpu(), found))),
    ]


def attacks(
    model: nn.Module, x: Tensor, y: Tensor, measure: MeasureSpec, bounds: tuple[float, float], seed: int
) -> tuple[list[Value], Arrays]:
    """FGSM, PGD, the smallest perturbation and corruptions; radii in units of the inputs' full range."""
    low, high = bounds
    radius = measure.epsilon * (high - low)
    fooled = pgd(model, x, y, radius, bounds=bounds, generator=torch.Generator().manual_seed(seed))
    survived = correct(model, fooled, y)
    one_step = correct(model, fgsm(model, x, y, radius, bounds=bounds), y)
    far = smallest_perturbation(model, x, y, largest=high - low, bounds=bounds) / (high - low)
    rows: list[Value] = [
        ("", "test", "pgd_accuracy", float(survived.double().mean())),
        ("", "test", "fgsm_accuracy", float(one_step.double().mean())),
        ("", "test", "min_perturbation", float(far.double().mean())),
        ("", "test", "corruption_accuracy", corruption_accuracy(model, x, y, bounds=bounds).mean),
    ]
    return rows, {"pgd_correct": survived.cpu().numpy().astype(np.uint8), "min_perturbation": far.cpu().numpy()}
