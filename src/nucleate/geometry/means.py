"""Geometry of class means and classifier rows: how near to a simplex, and to each other. All in float64."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


class Frame:
    """Rows with the products that the measures share, each taken once, in float64."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows.double()

    @functools.cached_property
    def gram(self) -> Tensor:
        """(C, C) inner products."""
        return self.rows @ self.rows.T

    @functools.cached_property
    def norms(self) -> Tensor:
        """(C,) lengths."""
        norms: Tensor = torch.linalg.vector_norm(self.rows, dim=1)
        return norms

    @functools.cached_property
    def cosines(self) -> Tensor:
        """(C, C) cosines; nan where a row is zero."""
        return self.gram / self.norms / self.norms[:, None]


def _frame(rows: Tensor | Frame) -> Frame:
    return rows if isinstance(rows, Frame) else Frame(rows)


@dataclass(frozen=True)
class Span:
    """Centred means of the classes present, Mc = A diag(s) V^T over the directions that carry them."""

    present: Tensor
    """(P,) class indices with points."""
    means: Tensor
    """(P, d) float64."""
    centre: Tensor
    """(d,) global mean mu_G."""
    centred: Tensor
    """(P, d) Mc."""
    left: Tensor
    """(P, r) A."""
    scale: Tensor
    """(r,) singular values s, largest first."""
    basis: Tensor
    """(d, r) V."""
    full_rank: int
    """min(d, P - 1): the rank that means in general position have."""
    absent: tuple[int, ...] = ()
    """Classes without a mean."""

    @property
    def rank(self) -> int:
        """Directions kept, r."""
        return len(self.scale)

    @functools.cached_property
    def frame(self) -> Frame:
        """Of the centred means."""
        return Frame(self.centred)

    @functools.cached_property
    def distances(self) -> Tensor:
        """(P, P) squared distances between the means."""
        return pair_distances(self.frame)

    @property
    def condition(self) -> float:
        """Largest singular value over the smallest that is kept."""
        return float(self.scale[0] / self.scale[-1]) if self.rank else math.nan


@torch.no_grad()
def span(means: Tensor, counts: Tensor | None = None, *, mu_g: Literal["class", "sample"] = "class") -> Span:
    """Decompose the centred class means, their null direction dropped by index rather than by tolerance.

    Centring leaves exactly min(d, P - 1) singular values; a tolerance on the P x P Gram matrix drops real ones too (a
    true NC1 of 0.0016 was read as 0.136). Only values at the rounding of float64 itself are cut beyond that.

    Args:
        means: (C, d); rows of nan are absent classes.
        counts: (C,) points of each class, needed for mu_g="sample".
        mu_g: mean of the class means, or of the points.

    Raises:
        ValueError: if no class is present, or counts are missing.

    >>> span(torch.eye(3)).scale.tolist()
    [1.0, 1.0]
    """
    means = means.double()
    present = torch.isfinite(means).all(1).nonzero().flatten()
    if not len(present):
        raise ValueError("no class has a point")
    m = means[present]
    if mu_g == "sample":
        if counts is None:
            raise ValueError('mu_g="sample" needs the class counts')
        share = counts[present].double()
        centre = (share / share.sum()) @ m
    else:
        centre = m.mean(0)
    mc = m - centre
    full = min(m.shape[1], len(m) - 1)
    frame = Frame(mc)
    left, scale, basis = _svd(frame, full)
    absent = tuple((~torch.isfinite(means).all(1)).nonzero().flatten().tolist())
    out = Span(present, m, centre, mc, left, scale, basis, full, absent)
    out.__dict__["frame"] = frame
    return out


def _svd(frame: Frame, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, singular values and right vectors of the top directions."""
    a = frame.rows
    rows, cols = a.shape
    if rank == 0:
        return a.new_zeros(rows, 0), a.new_zeros(0), a.new_zeros(cols, 0)
    wide = rows <= cols
    values, vectors = torch.linalg.eigh(frame.gram if wide else a.T @ a)
    values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    # The Gram route squares the condition number; past 1e5 it would cost more than half of float64's digits.
    if float(values[-1]) > 1e-10 * float(values[0]):
        s = values.sqrt()
        return (vectors, s, a.T @ (vectors / s)) if wide else (a @ (vectors / s), s, vectors)
    u, s, vt = torch.linalg.svd(a, full_matrices=False)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    keep = s > s[0] * max(rows, cols) * torch.finfo(torch.float64).eps
    return u[:, keep], s[keep], vt[keep].T


def cosines(rows: Tensor | Frame) -> Tensor:
    """Cosine of every pair of rows, (C, C) float64; nan where a row is zero.

    >>> cosines(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return _frame(rows).cosines


def _off_diagonal(a: Tensor) -> Tensor:
    n = len(a)
    return a.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()


def equinorm(rows: Tensor | Frame, *, ddof: int = 0) -> float:
    """Coefficient of variation of the rows' lengths, std_c |a_c| / mean_c |a_c|; 0 at a simplex.

    Chance is about 1/sqrt(2 d).

    (Papyan, Han, Donoho 2020, Fig. 2.)

    >>> equinorm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    0.5
    """
    norms = _frame(rows).norms
    return float(norms.std(correction=ddof) / norms.mean()) if len(norms) > ddof else math.nan


def equiangle(rows: Tensor | Frame) -> float:
    """Standard deviation of the cosine over pairs of different rows; 0 at a simplex, chance about 1/sqrt(d).

    (Papyan, Han, Donoho 2020, Fig. 3.)

    >>> equiangle(torch.eye(3))
    0.0
    """
    cos = cosines(rows)
    return float(_off_diagonal(cos).std(correction=0)) if len(cos) > 1 else math.nan


def max_angle(rows: Tensor | Frame) -> float:
    """Mean over pairs of |cos + 1/(C-1)|: distance from maximal angles; 0 at a simplex, chance about sqrt(2/(pi d)).

    (Papyan, Han, Donoho 2020, Fig. 4.)

    >>> max_angle(torch.eye(3))
    0.5
    """
    cos = cosines(rows)
    c = len(cos)
    return float((_off_diagonal(cos) + 1 / (c - 1)).abs().mean()) if c > 1 else math.nan


def etf_distance(rows: Tensor | Frame, other: Tensor | None = None) -> float:
    """Distance |nrm(A B^T) - E|_F of a Gram matrix from the simplex one, E = (I - J/C)/sqrt(C-1); B = A if none.

    In [0, sqrt 2] for B = A. Zero with B != A does not imply parallel rows. (Zhu et al. 2021.)

    >>> round(etf_distance(torch.eye(4)), 4)  # orthonormal rows: sqrt(2 - 2 sqrt((C-1)/C))
    0.5176
    """
    frame = _frame(rows)
    return gram_distance(frame.gram if other is None else frame.rows @ other.double().T)


def gram_distance(gram: Tensor) -> float:
    """`etf_distance` of a (C, C) Gram matrix, or of any matrix of inner products.

    >>> round(gram_distance(torch.eye(4)), 4)
    0.5176
    """
    gram = gram.double()
    c = len(gram)
    if c < 2:
        return math.nan
    target = (torch.eye(c, dtype=gram.dtype, device=gram.device) - 1 / c) / math.sqrt(c - 1)
    return float(torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - target))


def etf_distance_floor(num_classes: int, dim: int) -> float:
    """Smallest `etf_distance` that C rows in d dimensions can have: sqrt(2 - 2 sqrt(d/(C-1))) for d < C - 1, else 0.

    >>> round(etf_distance_floor(1001, 64), 3)
    1.222
    """
    return math.sqrt(2 - 2 * math.sqrt(min(1.0, dim / max(num_classes - 1, 1))))


def self_duality(weight: Tensor, centred: Tensor) -> float:
    """Squared Frobenius distance of the scaled classifier from the scaled means, |W/|W| - Mc/|Mc||^2 in [0, 4].

    0 at collapse, chance 2. (Papyan, Han, Donoho 2020, Fig. 5.)

    >>> round(self_duality(torch.eye(2), -torch.eye(2)), 6)
    4.0
    """
    w, m = weight.double(), centred.double()
    return float(torch.linalg.vector_norm((w / torch.linalg.vector_norm(w)).sub_(m / torch.linalg.vector_norm(m)))) ** 2


def alignment(weight: Tensor, centred: Tensor) -> Tensor:
    """Cosine of every classifier row with its own class mean, (C,) float64; 1 at collapse, chance 0.

    >>> alignment(torch.eye(2), torch.ones(2, 2)).tolist()
    [0.7..., 0.7...]
    """
    w, m = weight.double(), centred.double()
    cosine: Tensor = torch.linalg.vecdot(w, m) / (
        torch.linalg.vector_norm(w, dim=1) * torch.linalg.vector_norm(m, dim=1)
    )
    return cosine


def subspace_overlap(a: Tensor | Frame, b: Tensor | Frame, *, rank: int | None = None) -> float:
    """Mean cosine of the principal angles between the row spaces of two matrices; 1 if they are equal.

    Rank: that many top right singular vectors of each; the numerical rank of each if none, the smaller number counting.
    Random k-dimensional subspaces have mean squared cosine k/d. (Rangamani et al. 2023.)

    >>> subspace_overlap(torch.eye(4)[:2], torch.eye(4)[1:3])
    0.5
    """
    u, v = (_basis(_frame(x), rank) for x in (a, b))
    return _overlap(u, v)


def _basis(frame: Frame, rank: int | None) -> Tensor:
    wanted = min(frame.rows.shape) if rank is None else min(rank, *frame.rows.shape)
    return _svd(frame, wanted)[2]


def _overlap(u: Tensor, v: Tensor) -> float:
    return _mean_cosine(u.T @ v)


def _mean_cosine(k: Tensor) -> float:
    return float(torch.linalg.svdvals(k).clamp(max=1).mean()) if k.numel() else math.nan


def overlap_with(weight: Frame, cross: Tensor, means: Span) -> float:
    """`subspace_overlap` of a classifier with the span of the centred means, at its rank.

    Args:
        weight: (C, d), centred.
        cross: (C, C) inner products of the classifier's rows with the centred means, which spare two long products.
        means: of the same classes.
    """
    rows, cols = weight.rows.shape
    rank = min(means.rank, rows, cols)
    if rows > cols or not rank:
        return _overlap(_basis(weight, rank), means.basis)
    inside = (cross @ means.left) / means.scale
    if rank == rows - 1:
        # The rows sum to zero, so all but the last span the same; their Cholesky factor gives a basis at less cost.
        factor, failed = torch.linalg.cholesky_ex(weight.gram[:-1, :-1])
        size = factor.diagonal()
        if not int(failed) and float(size.min()) > 1e-5 * float(size.max()):
            return _mean_cosine(torch.linalg.solve_triangular(factor, inside[:-1], upper=False))
    values, vectors = torch.linalg.eigh(weight.gram)
    values, vectors = values[-rank:], vectors[:, -rank:]
    if float(values[0]) <= 1e-10 * float(values[-1]):
        return _overlap(_basis(weight, rank), means.basis)
    return _mean_cosine((vectors / values.sqrt()).T @ inside)


@torch.no_grad()
def pair_distances(means: Tensor | Frame) -> Tensor:
    """Squared Euclidean distance of every pair of means, (C, C) float64; O(C^2 + C d) memory.

    Pairs too close for the Gram form are taken again by exact differences.

    >>> pair_distances(torch.tensor([[0.0], [3.0]])).tolist()
    [[0.0, 9.0], [9.0, 0.0]]
    """
    raw = means.rows if isinstance(means, Frame) else means.double()
    frame = means if isinstance(means, Frame) else Frame(raw - raw.mean(0))
    sq = frame.gram.diagonal()
    out = (sq[:, None] + sq - (frame.gram + frame.gram.T)).clamp_(min=0)
    close = (out < 1e-8 * (sq[:, None] + sq)).triu(1).nonzero()
    for pairs in torch.split(close, max(1, (1 << 20) // raw.shape[1])):
        exact = (raw[pairs[:, 0]] - raw[pairs[:, 1]]).square().sum(1)
        out[pairs[:, 0], pairs[:, 1]] = exact
        out[pairs[:, 1], pairs[:, 0]] = exact
    return out.fill_diagonal_(0)


def cdnv_grid(distances: Tensor, within: Tensor) -> Tensor:
    """Class-distance normalised variance of every pair, (v_i + v_j) / (2 |mu_i - mu_j|^2); inf where means coincide.

    (C, C) float64 with nan on the diagonal; 0 at collapse. (Galanti, György, Hutter 2021, arXiv 2112.15121.)

    Args:
        distances: (C, C) squared, of `pair_distances`.
        within: (C,) class variances v_c.

    >>> cdnv_grid(torch.tensor([[0.0, 4.0], [4.0, 0.0]]), torch.tensor([1.0, 3.0]))[0, 1].item()
    0.5
    """
    v = within.double()
    return ((v[:, None] + v) / (2 * distances)).fill_diagonal_(math.nan)
