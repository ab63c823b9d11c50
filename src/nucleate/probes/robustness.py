"""How far an input must move before the network changes its mind: FGSM, PGD and the smallest perturbation found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.machine.batches import points_at_once


def fgsm(
    model: nn.Module, inputs: Tensor, labels: Tensor, epsilon: float, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Adversarial inputs x + epsilon sign(grad loss), clipped to the bounds (Goodfellow et al. 2015).

    Args:
        model: gives logits (N, C).
        inputs: (N, ...), in units of `bounds`.
        labels: (N,).
        epsilon: largest change of an entry, in the inputs' own units.
        bounds: smallest and largest value that an input can take.

    Raises:
        ValueError: for a negative epsilon.

    >>> net = nn.Linear(1, 2)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]])); _ = net.bias.data.zero_()
    >>> fgsm(net, torch.tensor([[0.5]]), torch.tensor([0]), 0.25).item()
    0.25
    """
    _check(epsilon)
    with _frozen(model):
        return (inputs + epsilon * _gradient(model, inputs, labels)[0].sign()).clamp(*bounds)


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    epsilon: float | Tensor,
    *,
    steps: int = 10,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial inputs by projected gradient steps of 2.5 epsilon / steps (Madry et al. 2018).

    With a generator the start is drawn uniformly from the ball; without, it is the input. A point that is fooled stays
    as it is then and costs no further step. `epsilon` may be (N,), one radius a point.

    Raises:
        ValueError: for a negative epsilon or fewer than one step.
    """
    _check(epsilon)
    if steps < 1:
        raise ValueError(f"PGD needs at least one step, not {steps}")
    ones = [1] * (inputs.ndim - 1)
    radius = torch.as_tensor(epsilon, dtype=inputs.dtype, device=inputs.device).reshape(-1, *ones)
    radius = radius.expand(len(inputs), *ones)
    low, high = (inputs - radius).clamp_min(bounds[0]), (inputs + radius).clamp_max(bounds[1])
    found = inputs.clone()
    if generator is not None:
        noise = torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype, device=generator.device)
        found = low + (high - low) * noise.to(inputs.device)
    rows = torch.arange(len(inputs), device=inputs.device)
    with _frozen(model):
        for _ in range(steps):
            x = found[rows]
            gradient, wrong = _gradient(model, x, labels[rows])
            rows, x, gradient = rows[~wrong], x[~wrong], gradient[~wrong]
            if not len(rows):
                break
            found[rows] = torch.clamp(x + 2.5 / steps * radius[rows] * gradient.sign(), low[rows], high[rows])
    return found


def smallest_perturbation(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    largest: float = 1.0,
    rounds: int = 8,
    steps: int = 10,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Smallest L-infinity radius (N,) at which PGD fools each point, by bisection to largest / 2^rounds.

    An upper bound: the adversarial input at that radius was found. 0 where the point is wrong as it is; `largest` where
    nothing was found.

    >>> net = nn.Linear(1, 2)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]])); _ = net.bias.data.copy_(torch.tensor([0.0, 1.0]))
    >>> round(smallest_perturbation(net, torch.tensor([[0.75]]), torch.tensor([0])).item(), 2)  # the boundary is at 0.5
    0.25
    """
    _check(largest)
    low = torch.zeros(len(inputs), dtype=inputs.dtype, device=inputs.device)
    high = torch.full_like(low, largest)
    right_already = correct(model, inputs, labels)
    rows = right_already.nonzero().flatten()
    x, y = inputs[rows], labels[rows]
    for _ in range(rounds if len(rows) else 0):
        middle = (low[rows] + high[rows]) / 2
        right = correct(model, pgd(model, x, y, middle, steps=steps, bounds=bounds), y)
        high[rows] = torch.where(right, high[rows], middle)
        low[rows] = torch.where(right, middle, low[rows])
    high[~right_already] = 0
    return high


def correct(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each point is classified right, bool (N,), in eval mode."""
    with _frozen(model), torch.no_grad():
        outputs = torch.cat([model(x) for x in inputs.split(points_at_once(model))])
    return outputs.argmax(1) == labels


def _check(epsilon: float | Tensor) -> None:
    if bool((torch.as_tensor(epsilon) < 0).any()):
        raise ValueError(f"epsilon must be at least 0, not {epsilon}")


def _gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the loss at the inputs, and which of them are classified wrong: one forward pass serves both."""
    points = points_at_once(model)
    gradients, wrong = [], []
    for part, y in zip(inputs.split(points), labels.split(points), strict=True):
        with torch.enable_grad():
            x = part.detach().requires_grad_()
            logits = model(x)
            gradients += torch.autograd.grad(F.cross_entropy(logits.double(), y, reduction="sum"), x)
        wrong.append(logits.argmax(1) != y)
    return torch.cat(gradients), torch.cat(wrong)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients of the parameters; every flag afterwards as it was."""
    modes = {m: m.training for m in model.modules()}
    wanted = {p: p.requires_grad for p in model.parameters()}
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for p, flag in wanted.items():
            p.requires_grad_(flag)
