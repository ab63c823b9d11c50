"""A model spec -> a network with weights drawn from the given generator."""

from __future__ import annotations

import math

import torch
from torch import Generator, nn

from nucleate.models.mlp import MLP
from nucleate.spec import ModelSpec


def build(spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int, *, generator: Generator) -> nn.Module:
    """Network of a spec; its last linear map is named `classifier`."""
    if spec.name != "mlp":
        raise ValueError(f"unknown model {spec.name!r}")
    # Parameters of a meta module are never drawn, so the global generator is left alone.
    with torch.device("meta"):
        model = MLP(math.prod(input_shape), num_classes, width=spec.width, depth=spec.depth, batchnorm=spec.batchnorm)
    model.to_empty(device="cpu")
    initialise(model, generator)
    return model


@torch.no_grad()
def initialise(model: nn.Module, generator: Generator) -> None:
    """Draw every weight anew: normal, variance 2 / fan-in (He 2015), 1 / fan-in in `classifier`; biases zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gain = 1.0 if name == "classifier" else 2.0
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, math.sqrt(gain / fan_in), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
