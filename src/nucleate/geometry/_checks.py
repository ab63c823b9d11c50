"""One clear ValueError for points that cannot be measured."""

from __future__ import annotations

import torch
from torch import Tensor

from nucleate.geometry.inputs import check_tensor


def check_points(x: Tensor, name: str) -> None:
    """Refuse anything but finite (N, d) floating points with at least one point and one dimension."""
    check_tensor(x, name)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name}: need (points, dimensions), not {tuple(x.shape)}; flatten or pool maps and sequences")
    if not x.is_floating_point():
        raise ValueError(f"{name}: need floating point, not {x.dtype}; convert with .float()")
    finite = torch.cat([torch.isfinite(part).all(1) for part in torch.split(x, max(1, 2**20 // x.shape[1]))])
    if not bool(finite.all()):
        bad = (~finite).nonzero()[:, 0]
        raise ValueError(
            f"{name}: NaN or infinity in {len(bad)} of {len(x)} rows (first: row {int(bad[0])}); drop or repair them"
        )
