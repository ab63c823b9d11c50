"""The surface around a trained network: sharpness, trace, margins, norms, how much noise it stands, barriers.

None of these is a score of generalisation: `nucleate audit` says how each ranks the runs of a sweep. All are taken in
eval mode, on the data given, at the loss given; masks restrict them to the surviving weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nucleate.machine.batches import points_at_once
from nucleate.probes.tap import evaluating

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (N, C), targets) -> scalar."""

Masks = Mapping[str, Tensor]


class Hessian:
    """Products with the Hessian of the loss over all trainable (and surviving) weights; one graph serves them all.

    Args:
        model: gives outputs (N, C).
        inputs: (N, ...).
        targets: what the loss takes.
        loss: mean over points; cross-entropy if none.
        masks: parameter name -> 0/1 tensor of surviving weights.

    Raises:
        ValueError: without trainable parameters.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> h = Hessian(net, torch.tensor([[2.0]]), torch.tensor([[0.0]]), loss=nn.MSELoss())
    >>> h.largest(), h.trace()  # d^2 / dw^2 of (2 w)^2
    (8.0, 8.0)
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, *, loss: Loss | None = None, masks: Masks | None = None
    ) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("the model has no parameter that requires a gradient")
        names = {id(p): name for name, p in model.named_parameters()}
        self._kept = _flat(
            [
                masks[names[id(p)]].to(p) if masks and names[id(p)] in masks else torch.ones_like(p)
                for p in self._parameters
            ]
        )
        self.size = len(self._kept)
        with evaluating(model), torch.enable_grad():
            value = (loss or F.cross_entropy)(model(inputs), targets)
            self._gradient = _flat(torch.autograd.grad(value, self._parameters, create_graph=True))

    def product(self, vector: Tensor) -> Tensor:
        """H v, (P,) of v (P,)."""
        v = (vector.to(self._gradient) * self._kept).detach()
        parts = torch.autograd.grad(self._gradient, self._parameters, v, retain_graph=True, materialize_grads=True)
        return _flat(parts).detach() * self._kept

    def largest(self, *, tolerance: float = 1e-3, seed: int = 0) -> float:
        """Sharpness: the largest eigenvalue, by Lanczos, to a relative tolerance."""
        return float(self.top(1, tolerance=tolerance, seed=seed)[0])

    def top(self, count: int, *, tolerance: float = 1e-3, seed: int = 0) -> Tensor:
        """The `count` largest eigenvalues (not sizes), in falling order, float64.

        Raises:
            ValueError: for a count outside 1 .. P, or if Lanczos does not converge.
        """
        if not 1 <= count <= self.size:
            raise ValueError(f"count must be in 1 .. {self.size}, not {count}")
        if self.size <= max(10, 2 * count):
            dense = torch.stack([self.product(row) for row in torch.eye(self.size, device=self._kept.device)]).double()
            values: Tensor = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:count].cpu()
            return values
        operator = LinearOperator(
            (self.size, self.size),
            matvec=lambda v: self.product(torch.from_numpy(np.ascontiguousarray(v.ravel()))).double().cpu().numpy(),
            dtype=np.float64,
        )
        start = torch.randn(self.size, generator=Generator().manual_seed(seed), dtype=torch.float64)
        try:
            found = eigsh(
                operator, k=count, which="LA", tol=tolerance, v0=start.numpy(), return_eigenvectors=False, maxiter=1000
            )
        except ArpackNoConvergence:
            raise ValueError(f"Lanczos did not reach a tolerance of {tolerance:g}; give a larger one") from None
        return torch.from_numpy(np.sort(found)[::-1].copy())

    def trace(self, *, probes: int = 30, seed: int = 0) -> float:
        """Trace by Hutchinson's estimator, mean of v^T H v over random signs v.

        Exact for a diagonal Hessian; its variance is 2 sum over i != j of H_ij^2, over `probes`.
        """
        if probes < 1:
            raise ValueError(f"the trace needs at least one probe, not {probes}")
        generator = Generator().manual_seed(seed)
        total = 0.0
        for _ in range(probes):
            v = torch.randint(0, 2, (self.size,), generator=generator).to(self._gradient) * 2 - 1
            total += float((v.double() * self.product(v).double()).sum())
        return total / probes

    def spectrum(self, *, probes: int = 10, steps: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Density of all eigenvalues: places (probes x m,) in rising order and their weights, which add up to 1.

        Stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019): m steps from a random
        start v give the Gauss rule of v's own density, exact for polynomials of degree 2 m - 1; starts are averaged.
        m is `steps`, or less where the start's Krylov space ends. All vectors are kept and made orthogonal again:
        steps x P numbers in float64.

        Raises:
            ValueError: for fewer than one probe or step.

        >>> net = nn.Linear(1, 1, bias=False)
        >>> h = Hessian(net, torch.tensor([[2.0]]), torch.tensor([[0.0]]), loss=nn.MSELoss())
        >>> [part.tolist() for part in h.spectrum(probes=1)]
        [[8.0], [1.0]]
        """
        if probes < 1 or steps < 1:
            raise ValueError(f"probes and steps must be at least 1, not {probes} and {steps}")
        generator = Generator().manual_seed(seed)
        places, weights = [], []
        for _ in range(probes):
            start = torch.randn(self.size, generator=generator, dtype=torch.float64) * self._kept.double().cpu()
            values, vectors = torch.linalg.eigh(self._tridiagonal(start / start.norm(), steps))
            places.append(values)
            weights.append(vectors[0].square() / probes)
        at, weight = torch.cat(places), torch.cat(weights)
        order = at.argsort()
        return at[order], weight[order]

    def _tridiagonal(self, v: Tensor, steps: int) -> Tensor:
        """The Hessian in the Krylov space of v, (m, m)."""
        basis = [v]
        diagonal: list[Tensor] = []
        beside: list[Tensor] = []
        for _ in range(min(steps, self.size)):
            w = self.product(basis[-1]).double().cpu()
            diagonal.append(w @ basis[-1])
            held = torch.stack(basis)
            size = w.norm()
            # Twice: once leaves a rest of the size of rounding times |H v|.
            for _ in range(2):
                w = w - held.T @ (held @ w)
            if w.norm() <= 1e-6 * size or len(diagonal) == min(steps, self.size):
                break
            beside.append(w.norm())
            basis.append(w / w.norm())
        t = torch.diag(torch.stack(diagonal))
        if beside:
            off = torch.stack(beside)
            t = t + torch.diag(off, 1) + torch.diag(off, -1)
        return t


@torch.no_grad()
def margins(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Signed margin (N,) of each point, f_y - max over j != y of f_j, float64; below zero where it is wrong.

    >>> margins(nn.Identity(), torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [1.0, -3.0]
    """
    with evaluating(model):
        z = torch.cat([model(x) for x in inputs.split(points_at_once(model))]).double()
    own = z.gather(1, labels[:, None])
    other = z.scatter(1, labels[:, None], -math.inf).max(1, keepdim=True).values
    gap: Tensor = (own - other).flatten()
    return gap


@torch.no_grad()
def spectral_norms(model: nn.Module, *, masks: Masks | None = None) -> dict[str, float]:
    """Largest singular value of every weight matrix; of a kernel, of its (outputs, inputs x height x width) matrix.

    For a convolution that is not the norm of the map, which also depends on the image's size; it bounds it from below
    and, times the root of the kernel's area, from above.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 4.0])))
    >>> spectral_norms(layer)
    {'weight': 4.0}
    """
    return {k: float(torch.linalg.matrix_norm(w.flatten(1).double(), 2)) for k, w in _matrices(model, masks).items()}


@torch.no_grad()
def frobenius_norms(model: nn.Module, *, masks: Masks | None = None) -> dict[str, float]:
    """Root of the sum of squares of every weight matrix and kernel."""
    return {k: float(w.double().norm()) for k, w in _matrices(model, masks).items()}


@torch.no_grad()
def path_norm(model: nn.Module, input_shape: tuple[int, ...], *, masks: Masks | None = None) -> float:
    """Root of the sum, over all paths from an input to an output, of the product of squared weights.

    The network with all weights squared, on an input of ones (Neyshabur et al. 2015). Not defined with batch
    normalisation unless it is folded into its convolution first.

    Raises:
        ValueError: for a model with batch normalisation.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> path_norm(layer, (2,))
    5.0
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ValueError("the path norm is not defined with batch normalisation; fold it into its layer first")
    weights = dict(model.named_parameters())
    squared = {k: (p * masks[k].to(p) if masks and k in masks else p).double().square() for k, p in weights.items()}
    buffers = {k: b.double() if b.is_floating_point() else b for k, b in model.named_buffers()}
    device = next(iter(weights.values())).device
    with evaluating(model):
        ones = torch.ones(1, *input_shape, dtype=torch.float64, device=device)
        return math.sqrt(float(functional_call(model, squared | buffers, (ones,)).sum()))


def distance(model: nn.Module, start: Mapping[str, Tensor], *, masks: Masks | None = None) -> float:
    """Euclidean distance of the trainable (and surviving) weights from earlier ones, by parameter name.

    >>> layer = nn.Linear(1, 1)
    >>> start = {k: p.detach().clone() for k, p in layer.named_parameters()}
    >>> _ = layer.weight.data.add_(3.0), layer.bias.data.sub_(4.0)
    >>> round(distance(layer, start), 6)
    5.0
    """
    total = 0.0
    for name, p in model.named_parameters():
        if p.requires_grad:
            gap = p.detach().double() - start[name].to(p.device).double()
            total += float((gap * masks[name].to(p) if masks and name in masks else gap).square().sum())
    return math.sqrt(total)


@torch.no_grad()
def perturbation_sigma(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    drop: float = 0.1,
    draws: int = 10,
    rounds: int = 12,
    largest: float = 1.0,
    relative: bool = False,
    masks: Masks | None = None,
    seed: int = 0,
) -> float:
    """Standard deviation of Gaussian noise on the weights at which the mean accuracy falls by `drop`, by bisection.

    PAC-Bayes flatness (Jiang et al. 2020): 1 / sigma^2 is their measure. `relative` scales the noise of a weight by
    its size. Resolved to largest / 2^rounds; `largest` where even that does not cost so much.

    Raises:
        ValueError: for a drop outside (0, 1), or fewer than one draw.
    """
    if not 0 < drop < 1 or draws < 1 or largest <= 0:
        raise ValueError(f"drop must be in (0, 1), draws and largest above 0, not {drop}, {draws} and {largest}")
    weights = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    generator = Generator().manual_seed(seed)
    noise = [{k: torch.randn(p.shape, generator=generator).to(p) for k, p in weights.items()} for _ in range(draws)]
    for own in noise:
        for k, e in own.items():
            e.mul_(weights[k].abs() if relative else 1.0)
            if masks and k in masks:
                e.mul_(masks[k].to(e))

    parts = inputs.split(points_at_once(model))

    def accuracy(sigma: float) -> float:
        hits = 0.0
        for own in noise:
            moved = {k: p + sigma * own[k] for k, p in weights.items()}
            outputs = torch.cat([functional_call(model, moved, (x,)) for x in parts])
            hits += float((outputs.argmax(1) == labels).double().mean())
        return hits / draws

    with evaluating(model):
        wanted = accuracy(0.0) - drop
        if accuracy(largest) > wanted:
            return largest
        low, high = 0.0, largest
        for _ in range(rounds):
            middle = (low + high) / 2
            low, high = (middle, high) if accuracy(middle) > wanted else (low, middle)
    return high


@torch.no_grad()
def barrier(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    measure: Callable[[nn.Module], float],
    *,
    points: int = 11,
) -> tuple[float, list[float]]:
    """Largest rise of a measure above the straight line between two networks' values, and the values on the way.

    Weights (1 - t) first + t second, t on an even grid (Frankle et al. 2020); first and second are state dicts of the
    model, whose own state is put back. Statistics of batch normalisation are interpolated like weights, which is known
    to overstate a barrier: measure again after `measure` has reset them where that matters.

    Raises:
        ValueError: for fewer than three points, or states of another network.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> states = [{"weight": torch.tensor([[w]])} for w in (-1.0, 1.0)]
    >>> barrier(net, *states, lambda m: 1 - m.weight.item() ** 2, points=3)
    (1.0, [0.0, 1.0, 0.0])
    """
    if points < 3:
        raise ValueError(f"a barrier needs at least three points, not {points}")
    own = {k: v.detach().clone() for k, v in model.state_dict().items()}
    if first.keys() != own.keys() or second.keys() != own.keys():
        raise ValueError("the two states do not belong to this model: their names differ")
    values = []
    try:
        for i in range(points):
            t = i / (points - 1)
            model.load_state_dict(
                {k: torch.lerp(v, second[k], t) if v.is_floating_point() else v for k, v in first.items()}
            )
            values.append(measure(model))
    finally:
        model.load_state_dict(own)
    line = np.linspace(values[0], values[-1], points)
    return float(max(np.array(values) - line)), values


def _matrices(model: nn.Module, masks: Masks | None) -> dict[str, Tensor]:
    return {
        k: p.detach() * masks[k].to(p) if masks and k in masks else p.detach()
        for k, p in model.named_parameters()
        if p.ndim >= 2
    }


def _flat(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
