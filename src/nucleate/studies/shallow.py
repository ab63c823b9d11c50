"""One hidden ReLU layer in NTK parametrisation, trained by hand: full batch, squared loss, plain gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


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
        """Gradient descent on (1/2n) sum |f - y|^2, in place."""
        scale = math.sqrt(2 / self.first.shape[1])
        pre = x.new_empty(len(x), self.first.shape[1])
        back = torch.empty_like(pre)
        for _ in range(steps):
            torch.mm(x, self.first, out=pre)
            pre.clamp_min_(0)
            # Residuals with all factors of the step.
            r = torch.addmm(targets, pre, self.second, beta=-1, alpha=scale).mul_(rate * scale / len(x))
            torch.mm(r, self.second.T, out=back)
            back.mul_(pre > 0)
            self.second.addmm_(pre.T, r, alpha=-1)
            self.first.addmm_(x.T, back, alpha=-1)


def draw(inputs: int, width: int, outputs: int, generator: Generator) -> Shallow:
    """A network with new weights, float32.

    >>> draw(2, 3, 1, Generator().manual_seed(0))(torch.zeros(4, 2)).shape
    torch.Size([4, 1])
    """
    return Shallow(torch.randn(inputs, width, generator=generator), torch.randn(width, outputs, generator=generator))
