"""Density peaks: the modes of a layer's probability density, without a number of clusters to choose (nucleation)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry.dimension import knn_density, two_nn
from nucleate.geometry.neighbours import Neighbours, neighbour_search


@dataclass(frozen=True)
class DensityPeaks:
    """Clusters around density peaks, densest first.

    `labels` (N,) cluster of each point; `centres` (C,) index of each peak; `log_density` (N,); `saddles` (C, C) log
    density at the highest pass between two clusters, nan where they do not touch; `reason` says what was adjusted.
    """

    labels: Tensor
    centres: Tensor
    log_density: Tensor
    saddles: Tensor
    dimension: float
    k: int
    z: float
    reason: str | None


@torch.no_grad()
def density_peaks(
    x: Tensor, *, k: int = 30, z: float = 1.65, dimension: float | None = None, found: Neighbours | None = None
) -> DensityPeaks:
    """Cluster points by the peaks of their k-nearest-neighbour density.

    A peak is denser than its k neighbours and lies in the neighbourhood of no denser point. Every other point joins its
    nearest denser neighbour. Two peaks merge, highest pass first, while one of them rises above the pass by less than
    z times the sum of both errors, (ln rho_peak - ln rho_pass) < 2 z / sqrt(k).

    Args:
        x: (N, d) points.
        k: neighbours, 1 .. N - 1; it sets the resolution.
        z: how many standard errors make a peak; 1.65 as in Doimo et al.
        dimension: intrinsic dimension of the density; the two-neighbour estimate if none.
        found: neighbours of x that are there already (k columns or more).

    Raises:
        ValueError: for k out of range, NaN, a negative z, or points without an intrinsic dimension.

    d'Errico, Facco, Laio, Rodriguez 2021 (arXiv 1802.10549); Doimo, Glielmo, Ansuini, Laio 2020 (arXiv 2007.03506).

    >>> g = torch.Generator().manual_seed(0)
    >>> x = torch.cat([torch.randn(100, 2, generator=g), torch.randn(100, 2, generator=g) + 9])
    >>> peaks = density_peaks(x, k=15)
    >>> len(peaks.centres), len(set(peaks.labels[:100].tolist()))
    (2, 1)
    """
    if z < 0:
        raise ValueError(f"z counts standard errors and must not be negative, but is {z}")
    found = neighbour_search(x, k) if found is None else found
    if found.indices.shape[1] < k or len(found.indices) != len(x):
        raise ValueError(f"found holds {tuple(found.indices.shape)} neighbours; density_peaks needs ({len(x)}, {k})")
    if dimension is None:
        estimate = two_nn(x, found=found if found.indices.shape[1] >= 2 else None)
        dimension = estimate.value
        if not dimension > 0:
            raise ValueError(f"no intrinsic dimension ({estimate.reason}); give dimension=")
    index = found.indices[:, :k].cpu()
    log_density, reason = _finite(knn_density(x, k, dimension=dimension, found=found).cpu())
    rank = torch.empty(len(x), dtype=torch.int64)
    rank[log_density.argsort(descending=True, stable=True)] = torch.arange(len(x))
    labels, centres = _basins(index, rank)
    saddles = _saddles(index, labels, log_density, len(centres))
    labels, centres, saddles = _merge(labels, centres, saddles, log_density, 2 * z / math.sqrt(k))
    saddles = torch.where(saddles == -math.inf, math.nan, saddles)
    return DensityPeaks(
        labels.to(x.device), centres.to(x.device), log_density.to(x.device), saddles, dimension, k, z, reason
    )


def _finite(log_density: Tensor) -> tuple[Tensor, str | None]:
    """Points with k twins have no finite density; they take the largest finite one."""
    infinite = torch.isinf(log_density)
    if not bool(infinite.any()):
        return log_density, None
    finite = log_density[~infinite]
    top = finite.max() if len(finite) else log_density.new_zeros(())
    reason = f"{int(infinite.sum())} points have all their neighbours at distance zero; they take the largest density"
    return torch.where(infinite, top, log_density), reason


def _basins(index: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Peaks, densest first, and the peak that each point climbs to; `rank` 0 is the densest point."""
    n, k = index.shape
    denser = rank[index] < rank[:, None]
    nearest = index.gather(1, denser.int().argmax(1, keepdim=True))[:, 0]
    summit = ~denser.any(1)
    # A summit that a denser point counts among its neighbours follows that point: the one that lists it first.
    owner = torch.arange(n)[:, None].expand(n, k)
    seen = summit[index] & (rank[:, None] < rank[index])
    place = torch.arange(k).expand(n, k)[seen]
    key = place * n + rank[owner[seen]]
    best = torch.full((n,), k * n, dtype=torch.int64).scatter_reduce_(0, index[seen], key, "amin")
    by_rank = rank.argsort()
    followed = summit & (best < k * n)
    parent = torch.where(summit, torch.arange(n), nearest)
    parent[followed] = by_rank[best[followed] % n]
    while not torch.equal(up := parent[parent], parent):
        parent = up
    centres = (summit & ~followed).nonzero()[:, 0]
    centres = centres[rank[centres].argsort()]
    number = torch.full((n,), -1, dtype=torch.int64)
    number[centres] = torch.arange(len(centres))
    return number[parent], centres


def _saddles(index: Tensor, labels: Tensor, log_density: Tensor, count: int) -> Tensor:
    """Highest log density of a border point between two clusters; -inf where they do not touch.

    A border point's nearest neighbour abroad has no nearer neighbour in the border point's own cluster.
    """
    saddles = torch.full((count * count,), -math.inf, dtype=torch.float64)
    abroad = labels[index] != labels[:, None]
    i = abroad.any(1).nonzero()[:, 0]
    j = index[i].gather(1, abroad[i].int().argmax(1, keepdim=True))[:, 0]
    back = labels[index[j]] == labels[i, None]
    first = index[j].gather(1, back.int().argmax(1, keepdim=True))[:, 0]
    border = ~back.any(1) | (first == i)
    i, j = i[border], j[border]
    saddles.scatter_reduce_(0, labels[i] * count + labels[j], log_density[i], "amax")
    saddles = saddles.view(count, count)
    return torch.maximum(saddles, saddles.T)


def _merge(
    labels: Tensor, centres: Tensor, saddles: Tensor, log_density: Tensor, error: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge peaks that do not rise above a pass by more than the error, highest pass first."""
    saddles = saddles.clone()
    peak = log_density[centres]
    target = torch.arange(len(centres))
    while True:
        low = torch.minimum(peak[:, None], peak) - saddles
        candidates = torch.where(low < error, saddles, -math.inf)
        best = int(candidates.argmax()) if len(centres) else 0
        a, b = sorted(divmod(best, len(centres)))
        if candidates[a, b] == -math.inf:
            break
        # Peaks are in order of density: the lower number is the denser and survives.
        target[target == b] = a
        joined = torch.maximum(saddles[a], saddles[b])
        joined[a] = joined[b] = -math.inf
        saddles[b, :] = saddles[:, b] = -math.inf
        saddles[a, :] = saddles[:, a] = joined
    kept = target.unique()
    number = torch.full((len(centres),), -1, dtype=torch.int64)
    number[kept] = torch.arange(len(kept))
    return number[target[labels]], centres[kept], saddles[kept][:, kept]
