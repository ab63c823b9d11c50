"""Multi-layer perceptron."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, `depth` times (linear, optional batch normalisation, ReLU), linear `classifier`."""

    def __init__(self, inputs: int, num_classes: int, *, width: int, depth: int, batchnorm: bool = False) -> None:
        super().__init__()
        self._stack(inputs, num_classes, [width] * depth, batchnorm)

    def _stack(self, inputs: int, num_classes: int, widths: list[int], batchnorm: bool) -> None:
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential()
        for i, width in enumerate(widths):
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


class LeNet(MLP):
    """The same with two hidden layers, the second a third as wide: width 300 is LeNet-300-100 (LeCun et al. 1998).

    266,200 weights on 28 x 28 images of ten classes.
    """

    def __init__(self, inputs: int, num_classes: int, *, width: int, depth: int = 2, batchnorm: bool = False) -> None:
        nn.Module.__init__(self)
        self._stack(inputs, num_classes, [width, max(1, round(width / 3))], batchnorm)
