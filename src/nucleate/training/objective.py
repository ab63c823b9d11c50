"""What is minimised, and by what."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.spec import TrainSpec


def make_optimizer(model: nn.Module, spec: TrainSpec, *, fused: bool) -> torch.optim.Optimizer:
    """The spec's optimizer over all parameters."""
    if spec.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, fused=fused)
    return torch.optim.SGD(
        model.parameters(), lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=fused
    )


def loss_of(outputs: Tensor, labels: Tensor, kind: str, num_classes: int) -> Tensor:
    """Mean cross-entropy, or squared error against one-hot targets averaged over points and classes (`nn.MSELoss`).

    Outputs (N, C) with labels (N,), or for sequences (N, T, C) with (N, T); labels of a floating-point type are
    distributions over classes, of the outputs' shape.
    """
    if kind == "mse":
        return F.mse_loss(outputs, targets_of(labels, num_classes).to(outputs.dtype))
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten(0, -2 if labels.is_floating_point() else -1))


def targets_of(labels: Tensor, num_classes: int) -> Tensor:
    """One-hot labels; distributions over classes as they are."""
    return labels if labels.is_floating_point() else F.one_hot(labels, num_classes)
