"""Masks that are trained while the weights stay as they were drawn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from nucleate.pruning.coverage import coverage
from nucleate.pruning.densities import round_half_up
from nucleate.pruning.masks import Masks


class EdgePopup:
    """Edge-popup: every weight has a score, each layer keeps its highest, and the scores learn (Ramanujan 2020).

        forward: w * [|s| among the largest round(density x size) of its layer];  backward: the gradient of the mask
        passes straight through to |s|.

    The model's parameters are read, never written: `step` trains scores alone, `masks` is what is evaluated.

    Args:
        model: its prunable weights get scores; everything else is frozen as it is.
        density: kept share of every layer's weights.
        generator: draws the scores, Kaiming-uniform with a = sqrt(5).

    Raises:
        ValueError: for a density outside (0, 1].

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> EdgePopup(net, 0.25, generator=Generator().manual_seed(0)).masks().densities
    {'0.weight': 0.25, '2.weight': 0.25}
    """

    def __init__(self, model: nn.Module, density: float, *, generator: Generator) -> None:
        if not 0 < density <= 1:
            raise ValueError(f"density is the kept share of the weights, in (0, 1], not {density!r}")
        self.model, self.density = model, density
        own = dict(model.named_parameters())
        self.weights = {name: own[name].detach() for name in coverage(model, include=("output",)).layouts}
        self.frozen = {name: p.detach() for name, p in own.items() if name not in self.weights}
        self.scores: dict[str, Tensor] = {}
        for name, w in self.weights.items():
            bound = 1 / math.sqrt(w[0].numel())
            drawn = torch.empty(w.shape).uniform_(-bound, bound, generator=generator)
            self.scores[name] = drawn.to(w.device).requires_grad_()

    def __call__(self, inputs: Any) -> Any:
        """The model's output under the present masks."""
        top: Any = _TopK.apply
        held = {name: w * top(self.scores[name].abs(), self.kept(w)) for name, w in self.weights.items()}
        return functional_call(self.model, {**self.frozen, **held}, (inputs,))

    def kept(self, weight: Tensor) -> int:
        """Weights that a layer keeps: at least one."""
        return max(1, round_half_up(self.density * weight.numel()))

    def masks(self) -> Masks:
        """The masks of the forward pass."""
        return Masks({name: _top(s.detach().abs(), self.kept(s)) for name, s in self.scores.items()})


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, kept: int) -> Tensor:
        return _top(scores, kept).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def _top(scores: Tensor, kept: int) -> Tensor:
    """uint8 mask of exactly `kept` largest entries."""
    mask = torch.zeros(scores.numel(), dtype=torch.uint8, device=scores.device)
    mask[scores.flatten().topk(kept, sorted=False).indices] = 1
    return mask.view(scores.shape)


@torch.no_grad()
def freeze_random(model: nn.Module, density: float, *, law: str, generator: Generator) -> None:
    """Draw weights that are to stay: "normal" with sigma^2 = 2 / (fan-in x density), or "signed-constant" +-sigma.

    The density in sigma keeps the size of activations under a mask that leaves this share. Biases become zero.
    """
    for name, w in model.named_parameters():
        if w.ndim < 2:
            if name.endswith("bias"):
                w.zero_()
            continue
        sigma = math.sqrt(2 / (w[0].numel() * density))
        if law == "normal":
            w.normal_(0.0, sigma, generator=generator)
        else:
            w.copy_(torch.where(torch.rand(w.shape, generator=generator) < 0.5, -sigma, sigma))
