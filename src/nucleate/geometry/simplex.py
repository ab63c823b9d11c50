"""The simplex toolbox: build one, recognise one, find coordinates in it, and the nearest one to given points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry.hull import least_squares, nearest_in_hull


def helmert(num_classes: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Orthonormal rows orthogonal to the ones vector, Q (C - 1, C): Q Q^T = I, Q^T Q = I - J/C.

    Row k is (1, .., 1, -k, 0, ..) / sqrt(k (k + 1)) with k leading ones. (Helmert 1876.)

    >>> helmert(2)
    tensor([[ 0.7071, -0.7071]], dtype=torch.float64)
    """
    k = torch.arange(1, num_classes, dtype=torch.float64)
    q = torch.ones(num_classes - 1, num_classes, dtype=torch.float64).tril()
    q[torch.arange(num_classes - 1), torch.arange(1, num_classes)] = -k
    return (q / torch.sqrt(k * (k + 1))[:, None]).to(dtype)


def simplex_etf(
    num_classes: int,
    dim: int | None = None,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Vertices of a centred regular simplex with unit rows: a simplex equiangular tight frame (C, d).

    V = sqrt(C/(C-1)) Q^T U^T with Helmert's Q and orthonormal U (d, C - 1): <v_i, v_j> = -1/(C-1), for any d >= C - 1.

    Args:
        num_classes: C >= 2.
        dim: d; C - 1 if none.
        generator: draws a random orientation; the first C - 1 axes if none.
        dtype: of the result; torch's default if none.

    Raises:
        ValueError: for C < 2, or d < C - 1 where no such frame exists.

    >>> v = simplex_etf(3, 5)
    >>> [round(x, 4) for x in (v @ v.T)[0].tolist()]
    [1.0, -0.5, -0.5]
    """
    if num_classes < 2:
        raise ValueError(f"a simplex needs at least two vertices, not {num_classes}")
    dim = num_classes - 1 if dim is None else dim
    if dim < num_classes - 1:
        raise ValueError(f"{num_classes} equiangular vertices need at least {num_classes - 1} dimensions, not {dim}")
    v = math.sqrt(num_classes / (num_classes - 1)) * helmert(num_classes).T
    if generator is None:
        out = torch.zeros(num_classes, dim, dtype=torch.float64)
        out[:, : num_classes - 1] = v
    else:
        draw = torch.randn(dim, num_classes - 1, generator=generator, dtype=torch.float64, device=generator.device)
        u, upper = torch.linalg.qr(draw.cpu())
        out = v @ (u * upper.diagonal().sign()).T
    return out.to(dtype or torch.get_default_dtype())


def is_affinely_independent(points: Tensor, *, rtol: float | None = None) -> bool:
    """Whether no point lies in the affine hull of the others: the centred (C, d) points have rank C - 1.

    Args:
        points: (C, d), the corners of a simplex if true.
        rtol: singular values below this share of the largest count as zero; rounding of the dtype if none.

    >>> is_affinely_independent(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    False
    """
    _check_vertices(points)
    count, dim = points.shape
    if count - 1 > dim:
        return False
    if count == 1:
        return True
    rounding = torch.finfo(points.dtype if points.is_floating_point() else torch.float64).eps * max(count, dim)
    values = torch.linalg.svdvals(points.double() - points.double().mean(0))[: count - 1]
    return bool(values[-1] > (rounding if rtol is None else rtol) * values[0])


def is_regular(vertices: Tensor, *, rtol: float = 1e-6) -> bool:
    """Whether all edges have one length and the vertices are affinely independent.

    >>> is_regular(torch.eye(4)), is_regular(torch.tensor([[0.0], [1.0], [2.0]]))
    (True, False)
    """
    if not is_affinely_independent(vertices):
        return False
    if len(vertices) == 1:
        return True
    edges = torch.pdist(vertices.double())
    return bool(edges.max() - edges.min() <= rtol * edges.max())


def faces(num_vertices: int, dim: int) -> Iterator[tuple[int, ...]]:
    """Faces of a given dimension, each as its dim + 1 vertex indices: binomial(n, dim + 1) of them.

    Raises:
        ValueError: if the simplex has no face of that dimension.

    >>> list(faces(3, 1))
    [(0, 1), (0, 2), (1, 2)]
    """
    if not 0 <= dim < num_vertices:
        raise ValueError(
            f"a simplex of {num_vertices} vertices has faces of dimension 0..{num_vertices - 1}, not {dim}"
        )
    return itertools.combinations(range(num_vertices), dim + 1)


def boundary(face: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Facets of a face with their orientation, sum_i (-1)^i (face without its i-th vertex); the boundary of it is 0.

    >>> boundary((0, 1, 2))
    [(1, (1, 2)), (-1, (0, 2)), (1, (0, 1))]
    """
    return [((-1) ** i, face[:i] + face[i + 1 :]) for i in range(len(face))] if len(face) > 1 else []


@torch.no_grad()
def barycentric(points: Tensor, vertices: Tensor) -> Tensor:
    """Coordinates p (n, C) with sum 1 and sum_c p_c v_c = x, or the nearest point of the affine hull to x.

    Solves [V^T; 1^T] p = [x; 1]; all p >= 0 exactly for points of the simplex.

    Args:
        points: (n, d).
        vertices: (C, d).

    Raises:
        ValueError: for affinely dependent vertices, whose coordinates are not unique, or shapes that do not fit.

    >>> barycentric(torch.tensor([[0.25, 0.5]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
    [[0.25, 0.25, 0.5]]
    """
    _check_points(points, vertices)
    if not is_affinely_independent(vertices):
        raise ValueError("the vertices are affinely dependent, so coordinates are not unique")
    v = vertices.double()
    solved = least_squares((v[1:] - v[0]).T, (points.double() - v[0]).T).T if len(v) > 1 else None
    tail = points.new_zeros(len(points), 0, dtype=torch.float64) if solved is None else solved
    return torch.cat([1 - tail.sum(1, keepdim=True), tail], 1)


@torch.no_grad()
def project_to_simplex(points: Tensor, vertices: Tensor | None = None) -> Tensor:
    """Nearest point of the standard simplex {p >= 0, sum p = 1}, or of the convex hull of `vertices`.

    Standard: max(x - t, 0) with the t that makes the sum one, by sorting (Held, Wolfe, Crowder 1974). Hull: the nearest
    point by Wolfe's algorithm, exact up to rounding.

    Args:
        points: (..., C), or (n, d) with vertices.
        vertices: (C, d) of any position.

    >>> project_to_simplex(torch.tensor([2.0, 0.0, 0.0])).tolist()
    [1.0, 0.0, 0.0]
    >>> project_to_simplex(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    if vertices is None:
        x = points.double()
        ordered = x.sort(-1, descending=True).values
        k = torch.arange(1, x.shape[-1] + 1, device=x.device)
        threshold = (ordered.cumsum(-1) - 1) / k
        kept = (ordered > threshold).sum(-1, keepdim=True)
        return (x - threshold.gather(-1, kept - 1)).clamp_(min=0)
    _check_points(points, vertices)
    v = vertices.double()
    return torch.stack([nearest_in_hull(v, x).weights @ v for x in points.double()]) if len(points) else points.double()


def distance_to_simplex(points: Tensor, vertices: Tensor | None = None) -> Tensor:
    """Euclidean distance to the standard simplex, or to the convex hull of `vertices`; 0 inside.

    >>> distance_to_simplex(torch.tensor([0.0, 0.0])).item()
    0.7...
    """
    distance: Tensor = torch.linalg.vector_norm(points.double() - project_to_simplex(points, vertices), dim=-1)
    return distance


@dataclass(frozen=True)
class NearestETF:
    """The simplex ETF nearest to given class means, classes matched by index."""

    vertices: Tensor
    """(C, d) unit rows, centred."""
    centre: Tensor
    """(d,) mean of the class means."""
    scale: float
    """Length that the vertices should have; the fitted means are centre + scale * vertices."""
    axes: Tensor
    """(C - 1, d) orthonormal; in coordinates (h - centre) @ axes.T / scale vertex c is `simplex_etf(C)[c]`."""
    distance: float
    """|Mc - scale V|_F / |Mc|_F in [0, 1]; 0 at collapse."""


@torch.no_grad()
def nearest_etf(means: Tensor) -> NearestETF:
    """Nearest simplex ETF to (C, d) class means: orthogonal Procrustes on Q Mc, scale by the trace; a closed form.

    Raises:
        ValueError: for fewer than two means, d < C - 1, or means that are all equal.

    >>> fit = nearest_etf(3 * simplex_etf(4, 6) + 1)
    >>> round(fit.scale, 4), fit.distance < 1e-6
    (3.0, True)
    """
    count, dim = means.shape
    if count < 2 or dim < count - 1:
        raise ValueError(f"no simplex of {count} vertices in {dim} dimensions; it needs 2 <= C <= d + 1")
    m = means.double()
    centre = m.mean(0)
    q = helmert(count).to(m)
    left, values, right = torch.linalg.svd(q @ (m - centre), full_matrices=False)
    if not float(values[0]) > 0:
        raise ValueError("the class means are all equal")
    axes = left @ right
    vertices = math.sqrt(count / (count - 1)) * q.T @ axes
    # <Mc, V> = sqrt(C/(C-1)) sum of singular values, |V|^2 = C.
    scale = float(values.sum()) / math.sqrt(count * (count - 1))
    distance = float(torch.linalg.matrix_norm(m - centre - scale * vertices) / torch.linalg.matrix_norm(m - centre))
    return NearestETF(vertices, centre, scale, axes, distance)


def _check_vertices(vertices: Tensor) -> None:
    if vertices.ndim != 2 or not len(vertices):
        raise ValueError(f"vertices must be (count, dimensions), not {tuple(vertices.shape)}")


def _check_points(points: Tensor, vertices: Tensor) -> None:
    _check_vertices(vertices)
    if points.ndim != 2 or points.shape[1] != vertices.shape[1]:
        raise ValueError(f"points must be (n, {vertices.shape[1]}) like the vertices, not {tuple(points.shape)}")
