"""One clear ValueError for points that have no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from nucleate.geometry.inputs import check_tensor


def check_points(x: Tensor, name: str = "x") -> None:
    """Refuse anything but finite points (n, ...).

    Raises:
        ValueError: for no tensor, too few axes, NaN or infinity.

    >>> check_points(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: x must be points (n, ...), not of shape (3,); a single point is x[None]
    """
    check_tensor(x, name)
    if x.ndim < 2:
        raise ValueError(f"{name} must be points (n, ...), not of shape {tuple(x.shape)}; a single point is x[None]")
    broken = ~torch.isfinite(x).flatten(1).all(1)
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        raise ValueError(f"{name} holds NaN or infinity in {int(broken.sum())} of {len(x)} points (first: {first})")
