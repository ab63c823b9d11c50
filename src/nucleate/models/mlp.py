"""Multi-layer perceptron."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, `depth` times (linear, optional batch normalisation, ReLU), linear `classifier`."""

    def __init__(self, inputs: int, num_classes: int, *, width: int, depth: int, batchnorm: bool = False) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential()
        for i in range(depth):
            block = nn.Sequential()
            block.add_module("linear", nn.Linear(inputs, width))
            if batchnorm:
                block.add_module("norm", nn.BatchNorm1d(width))
            block.add_module("relu", nn.ReLU())
            self.hidden.add_module(str(i), block)
            inputs = width
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of inputs (N, ...)."""
        return cast(Tensor, self.classifier(self.hidden(self.flatten(x))))
