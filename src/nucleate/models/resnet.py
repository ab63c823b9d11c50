"""Residual network for small images."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

STAGES = 4
"""Stages of a ResNet: each halves height and width and doubles the channels, but for the first."""


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut, then ReLU (He et al. 2016, Fig. 2)."""

    def __init__(self, channels: int, outputs: int, *, stride: int, batchnorm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride=stride, padding=1, bias=not batchnorm)
        self.norm1 = nn.BatchNorm2d(outputs) if batchnorm else nn.Identity()
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=not batchnorm)
        self.norm2 = nn.BatchNorm2d(outputs) if batchnorm else nn.Identity()
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != outputs:
            self.shortcut.add_module("conv", nn.Conv2d(channels, outputs, 1, stride=stride, bias=not batchnorm))
            if batchnorm:
                self.shortcut.add_module("norm", nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Feature map of a feature map."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return cast(Tensor, self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x)))


class ResNet(nn.Module):
    """3 x 3 stem, four stages of `depth` blocks at width, 2, 4, 8 times width, average, linear `classifier`.

    Width 64, depth 2 with batch normalisation is ResNet-18 for 32 x 32 images: 11,173,962 parameters at ten classes
    (He et al. 2016, with the stem of a 3 x 3 convolution and no pooling that is customary for CIFAR).
    """

    def __init__(self, channels: int, num_classes: int, *, width: int, depth: int, batchnorm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(channels, width, 3, padding=1, bias=not batchnorm))
        if batchnorm:
            self.stem.add_module("norm", nn.BatchNorm2d(width))
        self.stem.add_module("relu", nn.ReLU())
        channels = width
        self.stages = nn.Sequential()
        for i in range(STAGES):
            outputs = width * 2**i
            stage = nn.Sequential()
            for j in range(depth):
                stride = 2 if i and not j else 1
                stage.add_module(str(j), Block(channels, outputs, stride=stride, batchnorm=batchnorm))
                channels = outputs
            self.stages.add_module(str(i), stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, channels, height, width)."""
        return cast(Tensor, self.classifier(self.flatten(self.pool(self.stages(self.stem(x))))))
