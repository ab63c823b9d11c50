"""Scores from the gradient of the loss: labelled data; sums in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nucleate.pruning.criteria.given import Given, logits, run, size

TEMPERATURE = 200.0
"""GraSP divides the logits by this."""


def snip(given: Given) -> dict[str, Tensor]:
    """|w dL/dw| with L the mean loss over all the data: absolute value of the sum. Eval mode.

    The sensitivity of the loss to the weight's mask (Lee, Ajanthan, Torr 2019; they divide by the sum over all
    weights, which changes no ranking).
    """
    with mode(given, training=False):
        return {name: (given.weights[name].detach().double() * g).abs() for name, g in mean_gradient(given).items()}


def snip_batches(given: Given) -> dict[str, Tensor]:
    """Mean over batches of |w dL_b/dw|: sum of absolute values. Train mode; buffers are put back.

    What the code of Frankle et al. 2021 does. For one batch, and a network to which the mode makes no difference,
    it is `snip`.
    """
    with mode(given, training=True):
        return _over_batches(given, lambda w, g: (w * g).abs())


def taylor(given: Given) -> dict[str, Tensor]:
    """Mean over batches of (w dL_b/dw)^2: the loss lost to first order, squared. Eval mode (Molchanov et al. 2019)."""
    with mode(given, training=False):
        return _over_batches(given, lambda w, g: (w * g).square())


def taylor_abs(given: Given) -> dict[str, Tensor]:
    """Mean over batches of |w dL_b/dw|. Eval mode."""
    with mode(given, training=False):
        return _over_batches(given, lambda w, g: (w * g).abs())


def taylor_unit(given: Given) -> dict[str, Tensor]:
    """Mean over batches of (sum of w dL_b/dw over the weights of an output)^2, one value an output. Eval mode.

    The joint form: what the weights of an output do to the loss together, signs included.
    """
    with mode(given, training=False):
        total = Sums()
        for n, grads in batch_gradients(given):
            for name, g in grads.items():
                product = given.weights[name].detach().double() * g.double()
                total.add(name, given.layouts[name].rows(product).sum(1).square(), n)
        return total.means()


def movement(given: Given) -> dict[str, Tensor]:
    """-w dL/dw, so that weights that grow away from zero score high. Train mode (Sanh, Wolf, Rush 2020).

    The change of the score in one step over the data; `Movement` adds it up along fine-tuning, as the method means it.
    """
    with mode(given, training=True):
        return {name: -given.weights[name].detach().double() * g for name, g in mean_gradient(given).items()}


def grasp(given: Given) -> dict[str, Tensor]:
    """W (H g), with H g over all the data, logits divided by 200. Eval mode.

    The published score is -w (H g), of which the largest go: removing them raises the norm of the gradient. Here the
    largest stay, hence the sign (Wang, Zhang, Grosse 2020).
    """
    with mode(given, training=False, twice=True):
        g = mean_gradient(given, temperature=TEMPERATURE)
        total = Sums()
        for n, grads in batch_gradients(given, temperature=TEMPERATURE, graph=True):
            product = sum((grads[name] * g[name].to(grads[name].dtype)).sum() for name in grads)
            for name, h in derivative(product, given).items():
                total.add(name, given.weights[name].detach().double() * h.double(), n)
        return total.means()


def grasp_batches(given: Given) -> dict[str, Tensor]:
    """Mean over batches of w (H_b g_b), both of one batch. Train mode, as in the code of Frankle et al. 2021."""
    with mode(given, training=True, twice=True):
        total = Sums()
        for n, grads in batch_gradients(given, temperature=TEMPERATURE, graph=True):
            product = sum((g.detach() * g).sum() for g in grads.values())
            for name, h in derivative(product, given).items():
                total.add(name, given.weights[name].detach().double() * h.double(), n)
        return total.means()


def grasp_abs(given: Given) -> dict[str, Tensor]:
    """|w (H g)|: what changes the gradient's norm either way stays."""
    return {name: s.abs() for name, s in grasp(given).items()}


@contextmanager
def mode(given: Given, *, training: bool, twice: bool = False) -> Iterator[None]:
    """Train or eval mode inside, recorded; scoring puts modes and buffers back.

    With `twice`, attention is computed by plain products, for fused kernels cannot be differentiated twice.
    """
    given.used["mode"] = "train" if training else "eval"
    given.used["precision"] = str(next(iter(given.weights.values())).dtype).removeprefix("torch.")
    given.model.train(training)
    for w in given.weights.values():
        w.requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
        yield


def batch_gradients(
    given: Given, *, temperature: float = 1.0, graph: bool = False
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number of examples and gradient of the mean loss, batch by batch."""
    for inputs, targets in given.data():
        yield size(inputs), derivative(loss_of(given, inputs, targets, temperature), given, graph=graph)


def mean_gradient(given: Given, *, temperature: float = 1.0) -> dict[str, Tensor]:
    """Gradient of the mean loss over all examples, in float64."""
    total = Sums()
    for n, grads in batch_gradients(given, temperature=temperature):
        for name, g in grads.items():
            total.add(name, g.double(), n)
    return total.means()


def loss_of(given: Given, inputs: Any, targets: Any, temperature: float = 1.0) -> Tensor:
    """Mean loss of one batch.

    Raises:
        ValueError: if model or loss cannot take it, or the loss is no finite number.
    """
    output = run(given.model, inputs)
    if temperature != 1.0:
        output = logits(output) / temperature
    try:
        value = given.loss(output, targets)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        wanted = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"the loss cannot judge outputs {shape} by targets {wanted}: {reason}") from error
    if value.ndim or not bool(torch.isfinite(value.detach())):
        raise ValueError(f"the loss must be one finite number, not {value.detach().flatten()[:3].tolist()}")
    return value


class Sums:
    """Means over examples in float64."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor, n: int) -> None:
        value = value.detach().double() * n
        self.sums[name] = value if name not in self.sums else self.sums[name].add_(value)
        self.counts[name] = self.counts.get(name, 0) + n

    def means(self) -> dict[str, Tensor]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def _over_batches(given: Given, score: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    total = Sums()
    for n, grads in batch_gradients(given):
        for name, g in grads.items():
            total.add(name, score(given.weights[name].detach().double(), g.double()), n)
    return total.means()


def derivative(value: Any, given: Given, *, graph: bool = False, keep: bool | None = None) -> dict[str, Tensor]:
    """Derivative of a number by every scored weight; 0 where it does not depend on it."""
    held = list(given.weights.values())
    if not value.requires_grad:
        return {name: torch.zeros_like(w) for name, w in given.weights.items()}
    grads = torch.autograd.grad(value, held, retain_graph=keep, create_graph=graph, allow_unused=True)
    return {
        name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(given.weights.items(), grads, strict=True)
    }


def cross_entropy(output: Any, targets: Any) -> Tensor:
    """Mean cross-entropy of (N, C) logits, or of (N, T, C) against (N, T) targets; of `.logits` where there are."""
    z = output.logits if hasattr(output, "logits") else output
    if z.ndim == 3 and targets.ndim == 2:
        z, targets = z.flatten(0, 1), targets.flatten()
    return nn.functional.cross_entropy(z, targets)
