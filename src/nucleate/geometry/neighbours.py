"""Exact nearest neighbours that survive collapse, and what they say about labels and about other layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry import _search
from nucleate.geometry._checks import check_points
from nucleate.geometry._twins import first_twins, search_unique
from nucleate.geometry.inputs import check_pair

WILSON_Z = 1.959963984540054
"""Normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class Neighbours:
    """The k nearest points of each row, nearest first, ties by index.

    `tied`: the k-th and the (k+1)-th nearest are equally far, so that the index decided which one is in.
    `certified`: settled by the error bound of a fast product; the other rows were compared with every point by
    differences. All rows are exact. `prefilters` names the products that were used.
    """

    distances: Tensor
    indices: Tensor
    tied: Tensor
    certified: Tensor
    prefilters: tuple[str, ...]


@dataclass(frozen=True)
class Chi:
    """Share of neighbours with the same label, with what it would be by chance and at most.

    `low`, `high`: 95 % Wilson interval for as many draws as there are points (a point's share varies less than a coin).
    `stderr`: standard deviation of the points' shares over sqrt(N). `tied`: share of points whose k-th neighbour was
    chosen by index among equals.
    """

    value: float
    chance: float
    ceiling: float
    stderr: float
    low: float
    high: float
    tied: float
    k: int | float


@dataclass(frozen=True)
class Overlap:
    """Share of common neighbours of two layers; where `tied` is high, the tie rule decided the value."""

    value: float
    chance: float
    stderr: float
    low: float
    high: float
    tied: float
    k: int


def neighbours(x: Tensor, k: int, *, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of x to each row of `query`, or of x itself without the point itself.

    Euclidean distances by differences in float64, so that neighbours are right where classes have collapsed; self is
    removed by index, never by distance or position; ties go to the lower index.

    Args:
        x: (N, d) points, any float dtype.
        k: 1 .. N - 1, or 1 .. N with a query.
        query: (M, d) rows to search for; none for x itself.

    Returns:
        distances (N or M, k) float64, indices (N or M, k) int64; nearest first.

    Raises:
        ValueError: for NaN or infinity, k out of range, or shapes that do not fit.

    >>> neighbours(torch.tensor([[0.0], [1.0], [3.0]]), 1)[1].flatten().tolist()
    [1, 0, 1]
    """
    found = neighbour_search(x, k, query=query)
    return found.distances, found.indices


@torch.no_grad()
def neighbour_search(x: Tensor, k: int, *, query: Tensor | None = None, prefilter: str = "auto") -> Neighbours:
    """Find nearest neighbours as `neighbours` does, and report ties and how each row was settled.

    Args:
        x: (N, d) points, any float dtype.
        k: 1 .. N - 1, or 1 .. N with a query.
        query: (M, d) rows to search for; none for x itself.
        prefilter: the product that proposes candidates: "int8", "bfloat16", "float32", "float64", or "auto" for the
            fastest on this data and machine. It never changes the result; rows it cannot certify go to the next one.

    Raises:
        ValueError: for NaN or infinity, k out of range, or shapes that do not fit.

    >>> neighbour_search(torch.tensor([[0.0], [1.0], [2.0]]), 1).tied.tolist()
    [False, True, False]
    """
    check_points(x, "neighbours of x")
    most = len(x) - (query is None)
    if query is not None:
        check_points(query, "neighbours of query")
        if query.shape[1] != x.shape[1]:
            raise ValueError(f"query has {query.shape[1]} dimensions and x has {x.shape[1]}; they must be equal")
    if not 1 <= k <= most:
        raise ValueError(
            f"k must be 1..{most} for {len(x)} points{'' if query is not None else ' (self excluded)'}, not {k}"
        )
    x, query, factor = _rescaled(x, query)
    reach = min(k + 1, most)
    twins = first_twins(x)
    if twins is None:
        found = _search.search(x, query, reach, prefilter)
    else:
        found = search_unique(x, query, reach, prefilter, twins)
    d, i = found.distances, found.indices
    tied = d[:, k] == d[:, k - 1] if reach > k else torch.zeros(len(d), dtype=torch.bool, device=d.device)
    return Neighbours(d[:, :k] / factor, i[:, :k].contiguous(), tied, found.certified, found.codes)


def neighbour_hit(x: Tensor, labels: Tensor, k: int | float = 5) -> float:
    """Share of the k nearest neighbours that carry the point's own label: the value of `chi`.

    >>> neighbour_hit(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1]), k=1)
    1.0
    """
    return chi(x, labels, k).value


@torch.no_grad()
def chi(
    x: Tensor,
    labels: Tensor,
    k: int | float = 5,
    *,
    weights: str = "sample",
    found: Neighbours | None = None,
) -> Chi:
    """Measure label overlap: chi = (1/N) sum_i |{j in kNN(i): y_j = y_i}| / k.

    Chance is sum_c (n_c/N)(n_c - 1)/(N - 1), the ceiling the mean of min(1, (n_c - 1)/k). Larger is more ordered.

    Args:
        x: (N, d) features.
        labels: (N,) integers.
        k: neighbours of each point; a fraction below 1 is a share of the size of the point's own class (at least one).
        weights: "sample" (each point alike) or "class" (each class alike, for imbalance).
        found: neighbours of x that are there already (at least k columns), instead of a new search.

    Raises:
        ValueError: for shapes that do not fit, k out of range, or unknown weights.

    Doimo, Glielmo, Ansuini, Laio 2020 (arXiv 2007.03506).

    >>> result = chi(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1]), k=1)
    >>> result.value, round(result.chance, 3), result.ceiling
    (1.0, 0.333, 1.0)
    """
    check_pair(x, labels)
    if weights not in ("sample", "class"):
        raise ValueError(f"weights must be 'sample' or 'class', not {weights!r}")
    _classes, member, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    count = sizes[member]
    if isinstance(k, float) and not 0 < k < 1:
        raise ValueError(
            f"a fractional k must lie in (0, 1), as a share of each class, not {k}; give an integer otherwise"
        )
    each = (k * count.double()).floor().clamp_min(1).long() if isinstance(k, float) else torch.full_like(count, k)
    widest = int(each.max()) if len(each) else int(k)
    if found is None:
        found = neighbour_search(x, widest)
    elif found.indices.shape[0] != len(x) or found.indices.shape[1] < widest:
        raise ValueError(f"found holds {tuple(found.indices.shape)} neighbours; chi needs ({len(x)}, {widest} or more)")
    tied = found.tied if widest == found.indices.shape[1] and not isinstance(k, float) else _ties(found, each)
    hits = (labels[found.indices[:, :widest]] == labels[:, None]).cumsum(1)
    share = hits.gather(1, each[:, None] - 1)[:, 0].double() / each
    weight = torch.ones_like(share) if weights == "sample" else 1 / count.double()
    whole = weight.sum()

    def mean(values: Tensor) -> float:
        return float((weight * values.double()).sum() / whole)

    value = mean(share)
    low, high = _wilson(value, float(whole.square() / weight.square().sum()))
    return Chi(
        value=value,
        chance=mean((count - 1) / (len(x) - 1)),
        ceiling=mean(((count - 1) / each).clamp_max(1)),
        stderr=float((weight.square() * (share - value).square()).sum().sqrt() / whole),
        low=low,
        high=high,
        tied=mean(tied),
        k=k,
    )


def overlap(a: Tensor, b: Tensor) -> float:
    """Share of neighbours that two layers have in common: (1/N) sum_i |a_i ∩ b_i| / k.

    Args:
        a: (N, k) indices of one layer's neighbours.
        b: (N, k) of the other's, for the same points.

    Raises:
        ValueError: for different shapes.

    Doimo, Glielmo, Ansuini, Laio 2020 (arXiv 2007.03506).

    >>> overlap(torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[1, 2], [2, 0], [1, 0]]))
    1.0
    """
    return float(_common(a, b).mean())


def layer_overlap(a: Neighbours, b: Neighbours) -> Overlap:
    """Measure the overlap of two layers' neighbourhoods with its chance level k/(N-1), interval and share of ties.

    Raises:
        ValueError: for different shapes.

    >>> x = torch.arange(6.0)[:, None]
    >>> layer_overlap(neighbour_search(x, 2), neighbour_search(-x, 2)).chance
    0.4
    """
    share = _common(a.indices, b.indices)
    n, k = a.indices.shape
    value = float(share.mean())
    low, high = _wilson(value, n)
    stderr = float(share.std(correction=0)) / math.sqrt(n)
    return Overlap(value, k / (n - 1), stderr, low, high, float((a.tied | b.tied).double().mean()), k)


def _common(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"both layers need the same (points, k) neighbours, not {tuple(a.shape)} and {tuple(b.shape)}")
    step = max(1, 2**22 // a.shape[1] ** 2)
    pairs = zip(torch.split(a, step), torch.split(b, step), strict=True)
    return torch.cat([(p[:, :, None] == q[:, None]).any(2).double().mean(1) for p, q in pairs])


def _ties(found: Neighbours, each: Tensor) -> Tensor:
    """Ties at each point's own k."""
    beyond = torch.cat([found.distances, torch.full_like(found.distances[:, :1], math.nan)], 1)
    inner, outer = beyond.gather(1, each[:, None] - 1)[:, 0], beyond.gather(1, each[:, None])[:, 0]
    return torch.where(each == found.indices.shape[1], found.tied, inner == outer)


def _wilson(value: float, draws: float) -> tuple[float, float]:
    z2 = WILSON_Z**2
    middle = value + z2 / (2 * draws)
    half = WILSON_Z * math.sqrt(max(value * (1 - value), 0.0) / draws + z2 / (4 * draws * draws))
    low, high = (middle - half) / (1 + z2 / draws), (middle + half) / (1 + z2 / draws)
    # Rounding must not push an end past the value, nor past 0 or 1.
    return max(0.0, min(low, value)), min(1.0, max(high, value))


def _rescaled(x: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor | None, float]:
    """Points whose squares would leave the range of float64 are brought near 1 by a power of two."""
    top = float(x.abs().max()) if x.dtype == torch.float64 else 1.0
    if top == 0 or 1e-100 < top < 1e100:
        return x, query, 1.0
    factor = 2.0 ** -math.frexp(top)[1]
    return x * factor, None if query is None else query.double() * factor, factor
