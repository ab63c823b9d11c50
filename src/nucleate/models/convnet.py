"""Plain convolutional network."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from nucleate.models.mlp import MLP


class ConvNet(nn.Module):
    """Pairs of 3 x 3 convolutions with a 2 x 2 max-pool after each pair, average over positions, linear `classifier`.

    The channels double after every pair: width, width, 2 width, 2 width, ... Depth 2, 4 and 6 are the convolutional
    parts of Conv-2, Conv-4 and Conv-6 (Frankle, Carbin 2019), which end in dense layers instead of the average.
    """

    def __init__(self, channels: int, num_classes: int, *, width: int, depth: int, batchnorm: bool = False) -> None:
        super().__init__()
        self.hidden, channels = pairs(channels, width=width, depth=depth, batchnorm=batchnorm)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, channels, height, width)."""
        return cast(Tensor, self.classifier(self.flatten(self.pool(self.hidden(x)))))


def pairs(channels: int, *, width: int, depth: int, batchnorm: bool) -> tuple[nn.Sequential, int]:
    """`depth` 3 x 3 convolutions with a 2 x 2 max-pool after every second, and the channels that come out."""
    hidden = nn.Sequential()
    for i in range(depth):
        outputs = width * 2 ** (i // 2)
        block = nn.Sequential()
        block.add_module("conv", nn.Conv2d(channels, outputs, 3, padding=1, bias=not batchnorm))
        if batchnorm:
            block.add_module("norm", nn.BatchNorm2d(outputs))
        block.add_module("relu", nn.ReLU())
        if i % 2:
            block.add_module("pool", nn.MaxPool2d(2, ceil_mode=True))
        hidden.add_module(str(i), block)
        channels = outputs
    return hidden, channels


class Conv(nn.Module):
    """Conv-2, Conv-4 and Conv-6 at width 64, depth 2, 4 and 6: convolutions, dense 256, dense 256, `classifier`.

    4,300,992, 2,425,024 and 2,261,184 weights on 32 x 32 colour images of ten classes (Frankle, Carbin 2019, Fig. 2).
    """

    def __init__(
        self, shape: tuple[int, ...], num_classes: int, *, width: int, depth: int, batchnorm: bool = False
    ) -> None:
        super().__init__()
        self.hidden, channels = pairs(shape[0], width=width, depth=depth, batchnorm=batchnorm)
        height, wide = shape[1:]
        for _ in range(depth // 2):
            height, wide = -(-height // 2), -(-wide // 2)
        self.flatten = nn.Flatten()
        self.dense = MLP(channels * height * wide, num_classes, width=4 * width, depth=2).hidden
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, *shape)."""
        return cast(Tensor, self.classifier(self.dense(self.flatten(self.hidden(x)))))
