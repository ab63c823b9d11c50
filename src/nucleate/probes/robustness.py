"""How far an input must move before the network changes its mind: FGSM, PGD and the smallest perturbation found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        return (inputs + epsilon * _gradient(model, inputs, labels).sign()).clamp(*bounds)


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

    With a generator the start is drawn uniformly from the ball; without, it is the input. A point that was fooled once
    is kept as it was then, so more steps never undo a success. `epsilon` may be (N,), one radius a point.

    Raises:
        ValueError: for a negative epsilon or fewer than one step.
    """
    _check(epsilon)
    if steps < 1:
        raise ValueError(f"PGD needs at least one step, not {steps}")
    radius = torch.as_tensor(epsilon, dtype=inputs.dtype, device=inputs.device)
    radius = radius.reshape(-1, *[1] * (inputs.ndim - 1)) if radius.ndim else radius
    low, high = (inputs - radius).clamp_min(bounds[0]), (inputs + radius).clamp_max(bounds[1])
    x = inputs.clone()
    if generator is not None:
        noise = torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype, device=generator.device)
        x = low + (high - low) * noise.to(inputs.device)
    best = inputs.clone()
    with _frozen(model):
        for _ in range(steps):
            x = (x + 2.5 / steps * radius * _gradient(model, x, labels).sign()).clamp(low, high)
            wrong = _wrong(model, x, labels)
            best[wrong] = x[wrong]
        right = ~_wrong(model, best, labels)
        best[right] = x[right]
    return best


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
    with _frozen(model):
        wrong_already = _wrong(model, inputs, labels)
    for _ in range(rounds):
        middle = (low + high) / 2
        attacked = pgd(model, inputs, labels, middle, steps=steps, bounds=bounds)
        with _frozen(model):
            fooled = _wrong(model, attacked, labels)
        high = torch.where(fooled, middle, high)
        low = torch.where(fooled, low, middle)
    return torch.where(wrong_already, torch.zeros_like(high), high)


def correct(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each point is classified right, bool (N,), in eval mode."""
    with _frozen(model):
        return ~_wrong(model, inputs, labels)


def _check(epsilon: float | Tensor) -> None:
    if bool((torch.as_tensor(epsilon) < 0).any()):
        raise ValueError(f"epsilon must be at least 0, not {epsilon}")


def _gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        x = inputs.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(x).double(), labels, reduction="sum"), x)[0]


def _wrong(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        wrong: Tensor = model(inputs).argmax(1) != labels
    return wrong


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
