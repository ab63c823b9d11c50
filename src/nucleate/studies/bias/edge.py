"""Edge of stability: full-batch descent drives the sharpness to 2 / rate and keeps it there (Cohen et al. 2021)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from nucleate.data.sources import generator
from nucleate.probes.landscape import Hessian
from nucleate.spec import BiasSpec
from nucleate.studies.points import take

Measured = tuple[int, str, int, str, float]
"""Seed, arm, step, metric, value."""


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """0.5 |f - y|^2, averaged over points."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def edge(spec: BiasSpec, rate: float, data_root: Path | None) -> Iterator[Measured]:
    """All seeds at one learning rate, trained as one batch; sharpness by Lanczos at even steps.

    The network is tanh with two hidden layers, on centred one-hot targets. If 2 / rate lies below the sharpness of the
    start, the curve falls first.

    Raises:
        ValueError: if a network diverges.
    """
    points = take(spec.data, data_root, size=spec.data.train_size, validation=0)
    low, high = points.data.input_range
    x = (2 * (points.inputs.flatten(1) - low) / (high - low)) - 1
    classes = points.data.num_classes
    y = F.one_hot(points.clean, classes).float()
    sizes = [x.shape[1], spec.width, spec.width, classes]
    nets = [_layers(sizes, generator(seed, "edge of stability")) for seed in spec.seeds]
    weights = [torch.stack([net[i] for net in nets]).requires_grad_() for i in range(len(nets[0]))]
    steps = max(1, round(spec.steps * min(spec.rates) / rate))
    marks = {round(steps * i / spec.points) for i in range(spec.points + 1)}
    batch = x.expand(len(nets), -1, -1)
    arm = f"rate {rate:g}"
    for step in range(steps + 1):
        if step in marks:
            for i, seed in enumerate(spec.seeds):
                module = _module([w.detach()[i] for w in weights])
                with torch.no_grad():
                    loss = float(half_square(module(x), y))
                if not math.isfinite(loss):
                    raise ValueError(f"the network diverged at rate {rate:g}: give smaller rates")
                sharpness = Hessian(module, x, y, loss=half_square).largest(tolerance=1e-2)
                yield seed, arm, step, "sharpness", sharpness
                yield seed, arm, step, "sharpness_ratio", sharpness * rate / 2
                yield seed, arm, step, "loss", loss
        h = batch
        for w, b in zip(weights[0::2], weights[1::2], strict=True):
            h = torch.baddbmm(b, h, w)
            h = h.tanh() if w is not weights[-2] else h
        # Summed over networks, so that each sees its own gradient.
        loss_all = 0.5 * (h - y).square().sum() / len(x)
        for w, g in zip(weights, torch.autograd.grad(loss_all, weights), strict=True):
            with torch.no_grad():
                w.sub_(g, alpha=rate)


def _layers(sizes: list[int], draw: Generator) -> list[Tensor]:
    """Weights (in, out) and biases (1, out), uniform on +-1 / sqrt(in), as `nn.Linear` starts."""
    shapes = [(shape, a) for a, b in itertools.pairwise(sizes) for shape in ((a, b), (1, b))]
    return [(2 * torch.rand(shape, generator=draw) - 1) / math.sqrt(a) for shape, a in shapes]


def _module(weights: list[Tensor]) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(0, len(weights), 2):
        linear = nn.Linear(*weights[i].shape)
        linear.weight.data.copy_(weights[i].T)
        linear.bias.data.copy_(weights[i + 1][0])
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
