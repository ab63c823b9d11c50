"""What a study keeps for the report to draw: points chosen once, their coordinates, histograms of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.geometry.simplex import nearest_etf, simplex_etf
from nucleate.probes.weights import weight_spectra

BINS = 101
Arrays = dict[str, np.ndarray[Any, Any]]


def balanced(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of at most `size` points, as evenly over the classes as they allow, in a fixed random order."""
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.zeros(len(labels), dtype=torch.long)
    for c in labels.unique():
        members = (labels[order] == c).nonzero().flatten()
        rank[members] = torch.arange(len(members))
    return order[rank.argsort(stable=True)][:size].sort().values


def etf_coordinates(h: Tensor, means: Tensor, weight: Tensor) -> Arrays:
    """Points, means and weights in the frame whose vertices are a fixed unit simplex ETF; empty if d < C - 1.

    Lengths are in units of the nearest ETF's scale, the weights' in units of their own mean length.
    """
    classes, dim = means.shape
    if dim < classes - 1 or not torch.isfinite(means).all():
        return {}
    fit = nearest_etf(means)
    length = weight.norm(dim=1).mean().clamp_min(torch.finfo(torch.float64).tiny)
    found = {
        "etf_points": (h - fit.centre) @ fit.axes.T / fit.scale,
        "etf_means": (means - fit.centre) @ fit.axes.T / fit.scale,
        "etf_weights": weight @ fit.axes.T / length,
        "etf_vertices": simplex_etf(classes, dtype=torch.float64),
    }
    return {name: value.float().numpy() for name, value in found.items()}


def principal(h: Tensor, count: int = 50) -> np.ndarray[Any, Any]:
    """Top principal coordinates (n, min(d, 50)) of features, each axis signed so that its largest entry is positive."""
    x = h.double().cpu()
    x = x - x.mean(0)
    # Of the smaller Gram matrix: half the digits of a singular value decomposition, enough to draw, and faster.
    if len(x) <= x.shape[1]:
        values, vectors = torch.linalg.eigh(x @ x.T)
        z = (vectors * values.clamp_min(0).sqrt()).flip(1)[:, :count]
    else:
        z = x @ torch.linalg.eigh(x.T @ x)[1].flip(1)[:, :count]
    sign = z.gather(0, z.abs().argmax(0, keepdim=True)).sign()
    coordinates: np.ndarray[Any, Any] = (z * torch.where(sign == 0, 1.0, sign)).float().numpy()
    return coordinates


def weight_histograms(model: nn.Module) -> Arrays:
    """Histogram (counts and edges) and singular values of every weight matrix and kernel."""
    arrays: Arrays = {}
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            w = p.detach().double().cpu().numpy().ravel()
            far = float(np.abs(w).max()) or 1.0
            counts, edges = np.histogram(w, bins=BINS, range=(-far, far))
            arrays |= {f"hist:{name}": counts, f"edges:{name}": edges}
    return arrays | {f"spectrum:{k}": s.singular_values.float().cpu().numpy() for k, s in weight_spectra(model).items()}
