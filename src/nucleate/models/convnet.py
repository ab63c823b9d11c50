"""Plain convolutional network."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Pairs of 3 x 3 convolutions with a 2 x 2 max-pool after each pair, average over positions, linear `classifier`.

    The channels double after every pair: width, width, 2 width, 2 width, ... Depth 2, 4 and 6 are the convolutional
    parts of Conv-2, Conv-4 and Conv-6 (Frankle, Carbin 2019), which end in dense layers instead of the average.
    """

    def __init__(self, channels: int, num_classes: int, *, width: int, depth: int, batchnorm: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        for i in range(depth):
            outputs = width * 2 ** (i // 2)
            block = nn.Sequential()
            block.add_module("conv", nn.Conv2d(channels, outputs, 3, padding=1, bias=not batchnorm))
            if batchnorm:
                block.add_module("norm", nn.BatchNorm2d(outputs))
            block.add_module("relu", nn.ReLU())
            if i % 2:
                block.add_module("pool", nn.MaxPool2d(2, ceil_mode=True))
            self.hidden.add_module(str(i), block)
            channels = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, channels, height, width)."""
        return cast(Tensor, self.classifier(self.flatten(self.pool(self.hidden(x)))))
