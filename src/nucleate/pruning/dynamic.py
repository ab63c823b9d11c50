"""Masks that move while training: weights go and others come, the count of every layer stays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from nucleate.pruning.coverage import Extra, coverage, parameters
from nucleate.pruning.criteria.given import Given
from nucleate.pruning.densities import round_half_up
from nucleate.pruning.masks import Masks
from nucleate.pruning.threshold import Ranked, keep, ones


@dataclass(frozen=True)
class Regrow:
    """Every `every` steps drop the smallest live weights of a layer and grow as many others, up to step `stop`.

    The share that moves is fraction / 2 (1 + cos(pi step / stop)) of the layer's live weights. "gradient" grows where
    |dL/dw| is largest, as RigL does (Evci et al. 2020); "random" anywhere, as SET (Mocanu et al. 2018). A weight just
    dropped may come back; whatever comes starts at zero, with a clean optimizer state.
    """

    grow: Literal["gradient", "random"]
    stop: int
    every: int = 100
    fraction: float = 0.3

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.grow not in ("gradient", "random"):
            raise ValueError(f"grow by 'gradient' (RigL) or 'random' (SET), not {self.grow!r}")
        if self.stop < 1 or self.every < 1 or not 0 < self.fraction < 1:
            raise ValueError(
                f"stop and every must be at least 1 and fraction in (0, 1), not {self.stop}, {self.every}, "
                f"{self.fraction}"
            )

    def due(self, step: int) -> bool:
        """Whether weights move at this step."""
        return 0 < step < self.stop and step % self.every == 0

    def share(self, step: int) -> float:
        """Share of the live weights that moves.

        >>> [round(Regrow("random", stop=100).share(step), 3) for step in (0, 50, 100)]
        [0.3, 0.15, 0.0]
        """
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.stop))


def rigl(*, stop: int, every: int = 100, fraction: float = 0.3) -> Regrow:
    """Drop by size, grow by gradient (Evci et al. 2020)."""
    return Regrow("gradient", stop, every, fraction)


def set_(*, stop: int, every: int = 100, fraction: float = 0.3) -> Regrow:
    """Drop by size, grow at random: sparse evolutionary training (Mocanu et al. 2018)."""
    return Regrow("random", stop, every, fraction)


def regrown(
    masks: Masks,
    weights: Mapping[str, Tensor],
    growth: Mapping[str, Tensor],
    share: float,
) -> Masks:
    """Masks after one exchange; every layer keeps its count.

    Args:
        weights: current weights by name.
        growth: where the largest grow.
        share: of each layer's live weights, to be exchanged.

    >>> w = torch.tensor([3.0, 0.1, 0.0, 0.0])
    >>> regrown(Masks({"w": torch.tensor([1, 1, 0, 0])}), {"w": w}, {"w": torch.tensor([0.0, 0.0, 1.0, 2.0])}, 0.5)
    {'w': tensor([1, 0, 0, 1], dtype=torch.uint8)}
    """
    out = {}
    for name, mask in masks.items():
        if name in masks.coupled:
            out[name] = mask
            continue
        live = ones(mask)
        moved = min(round_half_up(share * live), mask.numel() - live)
        kept = keep({name: Ranked(weights[name].detach(), mask, by_size=True)}, live - moved)[name]
        grown = keep({name: Ranked(growth[name].detach(), 1 - kept, by_size=True)}, moved)[name]
        out[name] = kept + grown
        assert ones(out[name]) == live
    return Masks(out, coupled=masks.coupled)


def random_growth(masks: Masks, seed: int, step: int) -> dict[str, Tensor]:
    """Uniform numbers in the masks' shapes, the same on every process for a seed, layer and step."""
    out = {}
    for name, mask in masks.items():
        digest = hashlib.sha256(f"{seed}:{step}:{name}".encode()).digest()
        generator = Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        out[name] = torch.rand(mask.shape, generator=generator).to(mask.device)
    return out


class Movement:
    """Movement scores added up along training: S <- S - lr g w before every optimizer step (Sanh, Wolf, Rush 2020).

    Give it as the method of a `Pruner`. Weights that grow away from zero score high whatever their size; a pruned
    weight is zero, so its score stays where it was.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> optimizer = torch.optim.SGD(net.parameters(), 0.5)
    >>> movement = Movement(net, optimizer)
    >>> net(torch.tensor([[1.0, -1.0]])).sum().backward()
    >>> optimizer.step()
    >>> movement.scores["0.weight"].tolist()
    [[-0.5, 1.0]]
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, include: tuple[Extra, ...] = ()) -> None:
        self.scores: dict[str, Tensor] = {}
        names = coverage(model, include=include).layouts
        self._weights = {name: w for name, w in parameters(model) if name in names}
        self._rates = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._hook = optimizer.register_step_pre_hook(self._before)

    def __call__(self, given: Given) -> dict[str, Tensor]:
        """The scores so far.

        Raises:
            ValueError: before the first step.
        """
        if not self.scores:
            raise ValueError("movement has seen no optimizer step yet: prune later")
        return {name: self.scores[name] for name in given.weights if name in self.scores}

    def remove(self) -> None:
        """Stop watching the optimizer."""
        self._hook.remove()

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        for name, w in self._weights.items():
            if w.grad is not None:
                step = (w.detach() * w.grad).double().mul_(-float(self._rates[id(w)]["lr"]))
                self.scores[name] = step if name not in self.scores else self.scores[name].add_(step)
