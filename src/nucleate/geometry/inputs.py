"""What the geometry accepts: one clear ValueError for each kind of bad input."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(value: object, name: str) -> None:
    """Refuse anything but a tensor.

    Raises:
        ValueError: naming what was given.

    >>> check_tensor([1.0], "weight")
    Traceback (most recent call last):
    ValueError: weight must be a tensor, not list; convert it with torch.as_tensor
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(value).__name__}; convert it with torch.as_tensor")


def check_pair(features: Tensor, labels: Tensor) -> None:
    """Refuse anything but (N, d) floating features with (N,) integer labels.

    Raises:
        ValueError: for another rank, kind of number, or length.

    >>> check_pair(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    """
    check_tensor(features, "features")
    check_tensor(labels, "labels")
    if features.ndim != 2:
        raise ValueError(
            f"features must be (points, dimensions), not {tuple(features.shape)}; flatten or pool maps and sequences"
        )
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, not {features.dtype}; convert them with .float()")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be (points,) integers, not {tuple(labels.shape)} of {labels.dtype}")
    if len(labels) != len(features):
        raise ValueError(f"{len(features)} points but {len(labels)} labels; give one label for each point")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels outside 0 .. num_classes - 1 (reads the values: a synchronisation on a GPU).

    Raises:
        ValueError: naming the offending range.

    >>> check_labels(torch.tensor([0, 2]), 3)
    """
    if len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, but run from {low} to {high}")


def check_classifier(weight: Tensor | None, bias: Tensor | None, num_classes: int, dim: int) -> None:
    """Refuse a classifier that does not fit: weight (C, d), bias (C,), and no bias alone.

    Raises:
        ValueError: naming the shape that was expected.

    >>> check_classifier(torch.zeros(3, 2), torch.zeros(3), 3, 2)
    """
    if weight is None:
        if bias is not None:
            raise ValueError("a bias without a weight says nothing; give weight= as well")
        return
    check_tensor(weight, "weight")
    if bias is not None:
        check_tensor(bias, "bias")
    if tuple(weight.shape) != (num_classes, dim):
        raise ValueError(f"weight must be (classes, dimensions) = ({num_classes}, {dim}), not {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (num_classes,):
        raise ValueError(f"bias must be (classes,) = ({num_classes},), not {tuple(bias.shape)}")
    if not bool(torch.isfinite(weight).all()) or (bias is not None and not bool(torch.isfinite(bias).all())):
        raise ValueError("the classifier holds NaN or infinity; measure a checkpoint from before it diverged")


def check_means(means: Tensor, num_classes: int, dim: int) -> None:
    """Refuse class means that are not (C, d); rows of nan stand for absent classes.

    Raises:
        ValueError: naming the shape that was expected.

    >>> check_means(torch.zeros(3, 2), 3, 2)
    """
    check_tensor(means, "means")
    if tuple(means.shape) != (num_classes, dim):
        raise ValueError(f"means must be (classes, dimensions) = ({num_classes}, {dim}), not {tuple(means.shape)}")


def block_rows(dim: int, *, elements: int = 1 << 18) -> int:
    """Rows of a block of about `elements` numbers, which stays in a core's cache when converted.

    >>> block_rows(512)
    512
    """
    return max(1, elements // max(dim, 1))


def unit_rows(x: Tensor) -> Tensor:
    """Rows scaled to length one; a zero row becomes nan, which the readers report.

    >>> unit_rows(torch.tensor([[3.0, 4.0]])).tolist()
    [[0.6..., 0.8...]]
    """
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norms
