"""Distance to a convex hull, certified from both sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HullPoint:
    """Nearest point of a convex hull, with a certificate."""

    weights: Tensor
    """(C,) convex weights of the vertices."""
    distance: float
    """Distance of that point: an upper bound of the true distance."""
    lower: float
    """A lower bound of the true distance, from a separating hyperplane; 0 where the point is inside."""


@torch.no_grad()
def nearest_in_hull(vertices: Tensor, point: Tensor, *, tolerance: float = 1e-10, steps: int = 10_000) -> HullPoint:
    """Nearest point to `point` of the convex hull of (C, d) vertices, with bounds on both sides.

    Weights that are feasible bound the distance from above; a unit g bounds it from below by min_j <v_j - x, g>.
    (Wolfe 1976, Finding the nearest point in a polytope.)

    Args:
        vertices: (C, d).
        point: (d,).
        tolerance: gap, relative to the farthest vertex, at which to stop.
        steps: stop then in any case; the bounds stay true.

    >>> near = nearest_in_hull(torch.tensor([[1.0, -1.0], [1.0, 1.0], [3.0, 0.0]]), torch.zeros(2))
    >>> near.distance, near.lower
    (1.0, 1.0)
    """
    v = vertices.double() - point.double()
    scale = float(torch.linalg.vector_norm(v, dim=1).max())
    weights = v.new_zeros(len(v))
    start = int(v.square().sum(1).argmin())
    weights[start] = 1
    corral = [start]
    lower = 0.0
    for _ in range(steps):
        x = weights @ v
        norm = float(torch.linalg.vector_norm(x))
        if norm <= tolerance * scale:
            return HullPoint(weights, norm, 0.0)
        along = v @ x
        best = int(along.argmin())
        lower = max(lower, float(along[best]) / norm)
        if norm - lower <= tolerance * scale or best in corral:
            break
        corral.append(best)
        while True:
            target = _affine_nearest(v[corral])
            if bool((target > 0).all()):
                weights.zero_()
                weights[corral] = target
                break
            now = weights[corral]
            shrinking = target <= 0
            # A vertex that has just joined has weight 0; where the step is 0 too, it is the one that leaves again.
            step = (now / (now - target).clamp(min=torch.finfo(v.dtype).tiny))[shrinking].min()
            now = (now + step * (target - now)).clamp_(min=0)
            now[(now <= 1e-15) & shrinking] = 0
            if bool((now > 0).all()):
                now[int(now.argmin())] = 0
            weights.zero_()
            weights[corral] = now / now.sum()
            corral = [c for c, w in zip(corral, now.tolist(), strict=True) if w > 0]
    return HullPoint(weights, float(torch.linalg.vector_norm(weights @ v)), lower)


def _affine_nearest(v: Tensor) -> Tensor:
    """Weights, summing to one, of the point of the affine hull nearest to 0."""
    if len(v) == 1:
        return v.new_ones(1)
    tail = least_squares((v[1:] - v[0]).T, -v[0])
    return torch.cat([1 - tail.sum()[None], tail])


def least_squares(a: Tensor, b: Tensor) -> Tensor:
    """The x of least |a x - b|, in the same bits at every call.

    Without a named driver, torch on the CPU takes LAPACK's gelsy and hands it pivots that nobody has set, so that the
    rounding of x depends on what was in that memory before.

    >>> least_squares(torch.eye(2), torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    solution: Tensor = torch.linalg.lstsq(a, b, driver="gelsd" if a.device.type == "cpu" else None).solution
    return solution
