"""One hidden ReLU layer in NTK parametrisation, trained by hand: full batch, squared loss, plain gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

CACHE = 1 << 18
"""Hidden values of so many points are held at a time: a megabyte."""
LEAST_ROWS = 64
"""Fewer points make thin products."""


@dataclass
class Shallow:
    """f(x) = sqrt(2 / m) relu(x W) V, with W (d, m) and V (m, C) standard normal at the start.

    Its kernel tends to `ntk(x, depth=1)` as m grows.
    """

    first: Tensor
    second: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (N, C) of points (N, d)."""
        return math.sqrt(2 / self.first.shape[1]) * ((x @ self.first).relu() @ self.second)

    def kernel(self, x: Tensor) -> Tensor:
        """Class-averaged tangent kernel (N, N) of points (N, d), float64, in closed form.

        2/m h h' + (x x') * 2/m d diag(mean over classes of V^2) d', with h = relu(x W) and d its derivative.
        """
        x = x.double()
        pre = x @ self.first.double()
        h, d = pre.relu(), (pre > 0).double()
        weights = self.second.double().square().mean(1)
        return 2 / self.first.shape[1] * (h @ h.T + (x @ x.T) * ((d * weights) @ d.T))

    @torch.no_grad()
    def train(self, x: Tensor, targets: Tensor, *, steps: int, rate: float) -> None:
        """Gradient descent on (1/2n) sum |f - y|^2, in place.

        Points are taken a few at a time, so that what passes between the products of a step stays in the cache; the
        weights move once a step. Both layers and the hidden units lie transposed: products with few outputs are several
        times faster along their long side.
        """
        width, scale = self.first.shape[1], math.sqrt(2 / self.first.shape[1])
        first, second = self.first.T.contiguous(), self.second.T.contiguous()
        first_step, second_step = torch.empty_like(first), torch.empty_like(second)
        rows = max(LEAST_ROWS, CACHE // width)
        parts = [
            (p, p.T.contiguous(), t.T.contiguous()) for p, t in zip(x.split(rows), targets.split(rows), strict=True)
        ]
        hidden = [x.new_empty(width, p.shape[1]) for _, p, _ in parts[:1] + parts[-1:]]
        back = [torch.empty_like(h) for h in hidden]
        for _ in range(steps):
            for number, (points, columns, wanted) in enumerate(parts):
                last = number == len(parts) - 1
                h, d = hidden[last], back[last]
                torch.mm(first, columns, out=h)
                h.relu_()
                # Residuals with all factors of the step.
                r = torch.addmm(wanted, second, h, beta=-1, alpha=scale).mul_(rate * scale / len(x))
                torch.mm(second.T, r, out=d)
                torch.ops.aten.threshold_backward.grad_input(d, h, 0, grad_input=d)
                kept = float(number > 0)
                second_step.addmm_(r, h.T, beta=kept)
                first_step.addmm_(d, points, beta=kept)
            first -= first_step
            second -= second_step
        self.first.copy_(first.T)
        self.second.copy_(second.T)


def draw(inputs: int, width: int, outputs: int, generator: Generator) -> Shallow:
    """A network with new weights, float32.

    >>> draw(2, 3, 1, Generator().manual_seed(0))(torch.zeros(4, 2)).shape
    torch.Size([4, 1])
    """
    return Shallow(torch.randn(inputs, width, generator=generator), torch.randn(width, outputs, generator=generator))
