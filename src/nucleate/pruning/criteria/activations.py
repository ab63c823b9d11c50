"""Scores from what layers receive or give: data without labels, forward only, eval mode, sums in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nucleate.probes.tap import listen
from nucleate.pruning.criteria.given import Given, run
from nucleate.pruning.layout import Layout, Made

_RELUS = (nn.functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, nn.functional.relu_)
_THROUGH = (nn.functional.batch_norm, torch.batch_norm, nn.functional.dropout)

ROWS = ("linear", "conv1d", "attention")
"""Kinds of layers that multiply rows of inputs."""
PART = 256
"""Rows that are widened to float64 at a time."""


def wanda(given: Given) -> Made:
    """|w_ij| ||x_j||, compared within each output (Sun et al. 2024).

    ||x_j||^2 is the sum of squares of input j over all examples and positions: for convolutions over the positions at
    which that kernel entry is used. Padding is left out where the inputs bring an `attention_mask`.
    """
    energies = input_energies(given)
    for name, layout in given.layouts.items():
        given.layouts[name] = layout.with_ranking("output")
    return Made(given.weights, lambda name: energies[name].sqrt().mul_(given.weights[name].detach().abs()))


def apoz(given: Given) -> dict[str, Tensor]:
    """Share of (example, position) pairs at which an output is above 0 after its ReLU: 1 - APoZ (Hu et al. 2016)."""
    return _after_relu(given, lambda a: (a > 0).double().sum(1))


def mean_activation(given: Given) -> dict[str, Tensor]:
    """E|a| of an output after its ReLU, over examples and positions."""
    return _after_relu(given, lambda a: a.double().abs().sum(1))


def l2_activation(given: Given) -> dict[str, Tensor]:
    """sqrt(E a^2) of an output after its ReLU, over examples and positions."""
    return {name: s.sqrt() for name, s in _after_relu(given, lambda a: a.double().square().sum(1)).items()}


def input_energies(given: Given) -> dict[str, Tensor]:
    """Sum of squares of the input that meets each weight, in the shape of the weights, float64.

    While data pass, a linear map costs one number an input, not one a weight: all layers are calibrated in one pass.

    Raises:
        ValueError: for layers whose input is never seen.
    """
    # A tied weight meets the inputs of all modules that use it.
    places = {name: [n.rpartition(".")[0] for n in (name, *given.layouts[name].ties)] for name in given.weights}
    modules = {owner: given.model.get_submodule(owner) for owners in places.values() for owner in owners}
    # Made before data pass: what stays for long would lie between activations and keep their memory from reuse.
    energies = {
        name: torch.zeros(layout.inputs, dtype=torch.float64, device=given.weights[name].device)
        for name, layout in given.layouts.items()
        if layout.kind in ROWS
    }
    seen: set[str] = set()
    keep: dict[str, Tensor | None] = {"tokens": None}

    def receive(key: str, x: Tensor) -> None:
        owner = "" if key == "input" else key.removeprefix("input:").partition("#")[0]
        for name in (n for n, owners in places.items() if owner in owners and not _hidden(n)):
            seen.add(name)
            layout = given.layouts[name]
            if layout.kind in ROWS:
                energies[name] += row_energy(x.detach(), keep["tokens"])
                continue
            new = energy(modules[owner], given.weights[name].detach(), layout, x.detach(), keep["tokens"])
            energies[name] = new if name not in energies else energies[name] + new

    _eval(given)
    with torch.no_grad(), listen(given.model, [f"input:{owner}" if owner else "input" for owner in modules], receive):
        for inputs, _ in given.data():
            keep["tokens"] = tokens(inputs)
            run(given.model, inputs)
    unseen = [name for name in given.weights if name not in seen]
    if unseen:
        raise ValueError(
            f"the input of {', '.join(unseen[:3])} is never seen: its module is not run, or this weight meets "
            "something else, as in recurrent layers and out_proj of MultiheadAttention; limit layers= to others"
        )
    for name in given.weights:
        layout = given.layouts[name]
        if layout.kind in ROWS:
            energies[name] = layout.unrows(energies[name].expand(layout.outputs, -1))
    return energies


def _hidden(name: str) -> bool:
    """Whether a weight meets something else than what its module receives first."""
    return name.rpartition(".")[2].startswith(("weight_hh", "weight_ih", "k_proj_weight", "v_proj_weight"))


def row_energy(x: Tensor, kept: Tensor | None = None) -> Tensor:
    """Sum of squares of each of the inputs (..., inputs) of a linear map, float64, few rows at a time."""
    rows = x[kept] if kept is not None and x.shape[:2] == kept.shape else x.flatten(0, -2)
    total = torch.zeros(rows.shape[-1], dtype=torch.float64, device=x.device)
    for part in rows.split(PART):
        total += part.double().square_().sum(0)
    return total


def energy(module: nn.Module, w: Tensor, layout: Layout, x: Tensor, kept: Tensor | None = None) -> Tensor:
    """Sum of squares of one batch of inputs of an embedding or a convolution, in the weight's shape, float64.

    Args:
        kept: (N, T) positions to count; all if none.
    """
    if layout.kind == "embedding":
        counts = torch.bincount((x if kept is None else x[kept]).flatten(), minlength=len(w)).double()
        return counts[:, None].expand(w.shape)
    # Any convolution is linear in its weight: the derivative of the sum of its outputs for squared inputs is, at each
    # weight, the sum of the squares that meet it, whatever stride, padding, dilation and groups are.
    with torch.enable_grad():
        ones = torch.zeros_like(w, dtype=torch.float64).requires_grad_(True)
        x = x.double().square()
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            apply = (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d, nn.functional.conv_transpose3d)
            rest = module.stride, module.padding, module.output_padding, module.groups, module.dilation
            total = apply[w.ndim - 3](x, ones, None, *rest).sum()  # type: ignore[arg-type]
        else:
            # The module's own call, without its hooks: padding modes are in there.
            total = module._conv_forward(x, ones, None).sum()  # type: ignore[operator]
        return torch.autograd.grad(total, ones)[0]


def tokens(inputs: Any) -> Tensor | None:
    """(N, T) mask of the positions that are not padding, where the inputs say so."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _after_relu(given: Given, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Mean over examples and positions of what `reduce` sums over the second axis of (outputs, positions)."""
    owners = {name.rpartition(".")[0]: name for name in given.weights}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def rectified(name: str, a: Tensor) -> None:
        layout = given.layouts[name]
        axis = 1 if layout.kind in ("conv", "conv_transpose") and a.ndim > 2 else -1
        units = a.detach().movedim(axis, 0).flatten(1)
        sums[name] = sums.get(name, torch.zeros(1, device=a.device)) + reduce(units)
        counts[name] = counts.get(name, 0) + units.shape[1]

    _eval(given)
    with torch.no_grad(), _following(given.model, owners, rectified) as following:
        for inputs, _ in given.data():
            following.clear()
            run(given.model, inputs)
    if not sums:
        raise ValueError("no prunable layer is followed by a ReLU: this method has nothing to score")
    given.used["unscored"] = [name for name in given.weights if name not in sums]
    return {name: sums[name] / counts[name] for name in given.weights if name in sums}


class _Following(TorchFunctionMode):
    """Follows the outputs of layers through batch normalisation to their ReLU, module or function."""

    def __init__(self, rectified: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.rectified = rectified
        self.names: dict[int, tuple[str, Tensor]] = {}

    def clear(self) -> None:
        self.names.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if args and isinstance(args[0], Tensor) and id(args[0]) in self.names:
            name = self.names[id(args[0])][0]
            if func in _RELUS:
                del self.names[id(args[0])]
                self.rectified(name, out)
            elif func in _THROUGH:
                # The tensor is held so that its id is not used again.
                self.names[id(out)] = (name, out)
        return out


@contextmanager
def _following(
    model: nn.Module, owners: Mapping[str, str], rectified: Callable[[str, Tensor], None]
) -> Iterator[_Following]:
    following = _Following(rectified)

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                following.names[id(out)] = (name, out)

        return hook

    handles = [model.get_submodule(owner).register_forward_hook(after(name)) for owner, name in owners.items() if owner]
    try:
        with following:
            yield following
    finally:
        for handle in handles:
            handle.remove()


def _eval(given: Given) -> None:
    given.model.eval()
    given.used.update(
        {"mode": "eval", "precision": str(next(iter(given.weights.values())).dtype).removeprefix("torch.")}
    )
