"""Training inside an affine subspace of the weights: w = w0 + P z, only z moves."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call


class Subspace(nn.Module):
    """A network that can move in d directions only, from where its weights are now (Li et al. 2018).

        w = w0 + P z,  z in R^d, z = 0 at the start

    "random": every weight is moved by `mixing` coordinates drawn at random, each with a random sign; the columns of P
    have length about 1 and are nearly orthogonal (a sparse random projection: a dense one costs d times as much).
    "mask": P picks d of the weights, drawn uniformly; the others stay where they are.

    Args:
        model: its parameters are read, never written.
        dimension: d.
        kind: "random" or "mask".
        generator: draws the directions.
        mixing: coordinates that move each weight ("random").

    Raises:
        ValueError: for a dimension below 1 or above the number of parameters.

    >>> net = nn.Linear(3, 2)
    >>> inside = Subspace(net, 4, kind="mask", generator=Generator().manual_seed(0))
    >>> inside.coordinates.shape, bool((inside(torch.ones(1, 3)) == net(torch.ones(1, 3))).all())
    (torch.Size([4]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        dimension: int,
        *,
        kind: Literal["random", "mask"],
        generator: Generator,
        mixing: int = 4,
    ) -> None:
        super().__init__()
        held = {name: p.detach() for name, p in model.named_parameters()}
        total = sum(p.numel() for p in held.values())
        if not 1 <= dimension <= total:
            raise ValueError(f"a subspace of {total} parameters has a dimension between 1 and {total}, not {dimension}")
        self._model = [model]
        self._shapes = {name: p.shape for name, p in held.items()}
        self.start: Tensor
        self.index: Tensor
        self.sign: Tensor
        self.register_buffer("start", torch.cat([p.flatten() for p in held.values()]))
        self.coordinates = nn.Parameter(torch.zeros(dimension))
        if kind == "mask":
            self.register_buffer("index", torch.randperm(total, generator=generator)[:dimension].sort().values)
            self.register_buffer("sign", torch.empty(0))
        else:
            index = torch.randint(dimension, (mixing, total), generator=generator)
            sign = torch.randint(2, (mixing, total), generator=generator) * 2.0 - 1.0
            # Each column has about mixing x total / d entries.
            self.register_buffer("index", index)
            self.register_buffer("sign", sign * math.sqrt(dimension / (mixing * total)))

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters at the present coordinates."""
        if self.sign.numel():
            moved = self.start + (self.coordinates[self.index] * self.sign).sum(0)
        else:
            moved = self.start.index_add(0, self.index, self.coordinates)
        parts = moved.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def forward(self, inputs: Any) -> Any:
        """The network's output at the present coordinates."""
        return functional_call(self._model[0], self.weights(), (inputs,))
