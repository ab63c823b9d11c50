"""Empirical neural tangent kernel of any module at its present weights: products of Jacobians, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

from nucleate.kernels.points import check_points
from nucleate.probes.tap import evaluating

BLOCK = 1 << 26
"""Numbers that a block of points may hold: 512 MB in float64."""

Parameters = dict[str, Tensor]
Run = Callable[[Parameters, Tensor], Tensor]


def empirical_ntk(
    model: nn.Module,
    x: Tensor,
    x2: Tensor | None = None,
    *,
    output: str | int = "trace",
    masks: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Kernel of the gradients, Theta[(i,a),(j,b)] = <d f_a(x_i) / d theta, d f_b(x_j) / d theta>.

    Over the parameters that require a gradient, in eval mode (statistics of batch normalisation fixed, no dropout: in
    training mode the points of a batch are coupled and a point has no Jacobian of its own). The module, its mode and
    its weights are left as they were.

    A linear map W h of one vector a point needs no Jacobian: its part is (D D^T) * (H H^T), D the gradients at its
    output. Everything else goes through Jacobians of C P numbers a point, at most `BLOCK` numbers at a time.

    Args:
        model: gives (N, C) outputs.
        x: inputs (n, ...).
        x2: inputs (n2, ...); x itself if none.
        output: "trace", the mean over outputs, (n, n2); "full", (n C, n2 C), points outside, outputs inside; or the
            index of one output, (n, n2).
        masks: parameter name -> 0/1 tensor: the network with these weights alone.
        dtype: of the Jacobians and the kernel.

    Raises:
        ValueError: for an output or a mask that does not fit, a model without trainable parameters, or points that are
            no tensor of finite (n, ...).

    >>> net = nn.Linear(2, 3, bias=False)
    >>> empirical_ntk(net, torch.tensor([[3.0, 4.0]])).item()  # |x|^2: each output has its own weights
    25.0
    """
    check_points(x)
    if x2 is not None:
        check_points(x2, "x2")
    run, values = network(model, masks, dtype)
    with evaluating(model):
        with torch.no_grad():
            outputs = run(values, x[:1].to(dtype)).shape[-1]
        if not (output in ("trace", "full") or (isinstance(output, int) and 0 <= output < outputs)):
            raise ValueError(f"output must be trace, full or an index below {outputs}, not {output!r}")
        chosen = [output] if isinstance(output, int) else list(range(outputs))
        linear = _linear_maps(model, run, values, x[:2].to(dtype), masks or {})
        inside = {name for maps in linear for name in (maps.weight, maps.bias) if name}
        rest = {k: v for k, v in values.items() if k not in inside}
        tangents = _Tangents(run, values, rest, linear, chosen, flat=output != "full")
        kernel = _assemble(tangents, x.to(dtype), None if x2 is None else x2.to(dtype))
    return kernel / outputs if output == "trace" else kernel


def ntk_product(
    model: nn.Module,
    x: Tensor,
    x2: Tensor,
    vectors: Tensor,
    *,
    masks: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The full kernel times a vector, J(x) (J(x2)^T v), (n, C) of v (n2, C), without ever forming a Jacobian.

    One backward pass over x2, and one over x and its backward pass. Modes and errors as in `empirical_ntk`.

    >>> ntk_product(nn.Linear(2, 1, bias=False), torch.eye(2), torch.eye(2), torch.tensor([[5.0], [7.0]])).tolist()
    [[5.0], [7.0]]
    """
    run, values = network(model, masks, dtype)
    with evaluating(model):
        pull = vjp(lambda p: run(p, x2.to(dtype)), values)[1]
        (direction,) = pull(vectors.to(dtype))
        return _push(run, values, x.to(dtype), direction)[1].detach()


class Linearised(nn.Module):
    """First-order Taylor expansion of a network in its weights: f(theta_0) + J(theta_0) (theta - theta_0).

    The trainable parameters are the displacements theta - theta_0, at first zero; it trains with any loop. The network
    is read in eval mode and left alone.

    >>> net = nn.Linear(2, 1)
    >>> bool(torch.equal(Linearised(net)(torch.ones(1, 2)), net(torch.ones(1, 2))))
    True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        dtype = next(model.parameters()).dtype
        self._run, self._start = network(model, None, dtype)
        # Kept out of the module tree: its weights are constants here, not parameters.
        self._model = [model]
        self.displacements = nn.ParameterList([nn.Parameter(torch.zeros_like(v)) for v in self._start.values()])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C) of inputs (N, ...)."""
        moved = dict(zip(self._start, self.displacements, strict=True))
        with evaluating(self._model[0]):
            start, change = _push(self._run, self._start, x, moved)
        return start + change


def network(model: nn.Module, masks: Mapping[str, Tensor] | None, dtype: torch.dtype) -> tuple[Run, Parameters]:
    """The model as a function of (trainable parameters, inputs), and copies of these parameters.

    Raises:
        ValueError: for masks that do not fit, or without trainable parameters.
    """
    values = {k: p.detach().to(dtype, copy=True) for k, p in model.named_parameters() if p.requires_grad}
    if not values:
        raise ValueError("the model has no parameter that requires a gradient")
    fixed = {k: p.detach().to(dtype) for k, p in model.named_parameters() if not p.requires_grad}
    fixed |= {k: b.to(dtype) if b.is_floating_point() else b for k, b in model.named_buffers()}
    kept: Parameters = {}
    shapes = {k: p.shape for k, p in model.named_parameters()}
    for name, mask in (masks or {}).items():
        if name not in shapes or mask.shape != shapes[name]:
            raise ValueError(f"mask {name!r} {tuple(mask.shape)} fits no parameter of the model")
        kept[name] = mask.to(device=next(iter(values.values())).device, dtype=dtype)

    def run(parameters: Parameters, inputs: Tensor) -> Tensor:
        # The chain rule through the product masks the gradient too.
        full = {k: v * kept[k] if k in kept else v for k, v in (fixed | parameters).items()}
        out: Tensor = functional_call(model, full, (inputs,))
        return out

    return run, values


@dataclass(frozen=True)
class _Linear:
    """A linear map that sees one vector of each point, once: names of its trainable weight and bias."""

    module: nn.Linear
    weight: str
    bias: str


@dataclass(frozen=True)
class _Tangents:
    """Turns points into what their kernel is a product of."""

    run: Run
    values: Parameters
    rest: Parameters
    linear: list[_Linear]
    outputs: list[int]
    flat: bool
    """Sum over outputs; else one row for each point and output."""

    @property
    def size(self) -> int:
        """Numbers that a point takes."""
        own = sum(len(self.outputs) * m.module.out_features + m.module.in_features for m in self.linear)
        return own + len(self.outputs) * sum(v.numel() for v in self.rest.values())

    @property
    def rows(self) -> int:
        """Rows of the kernel for each point."""
        return 1 if self.flat else len(self.outputs)

    def of(self, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """(Gram factor H, gradients D) of each linear map, and the Jacobian of the rest."""
        pairs = []
        if self.linear:
            with _watched([m.module for m in self.linear]) as seen, torch.enable_grad():
                out = self.run(self.values, x)
            shifts = [seen[m.module][1] for m in self.linear]
            grads = [torch.autograd.grad(out[:, c].sum(), shifts, retain_graph=True) for c in self.outputs]
            for i, m in enumerate(self.linear):
                h = seen[m.module][0].detach() if m.weight else x.new_empty(len(x), 0)
                h = torch.cat([h, h.new_ones(len(h), 1)], dim=1) if m.bias else h
                d = torch.stack([g[i] for g in grads], dim=1)
                pairs.append((h if self.flat else h.repeat_interleave(self.rows, 0), self._shaped(d)))
        jacobian = x.new_empty(len(x) * self.rows, 0)
        if self.rest:
            found = vmap(jacrev(self._single), in_dims=(None, 0))(self.rest, x)
            jacobian = self._shaped(torch.cat([block.flatten(2) for block in found.values()], dim=2).detach())
        return pairs, jacobian

    def _single(self, rest: Parameters, point: Tensor) -> Tensor:
        return self.run(self.values | rest, point[None])[0, self.outputs]

    def _shaped(self, rows: Tensor) -> Tensor:
        return rows.flatten(1) if self.flat else rows.flatten(0, 1)


def _assemble(tangents: _Tangents, x: Tensor, x2: Tensor | None) -> Tensor:
    columns = x if x2 is None else x2
    size, c = max(1, BLOCK // tangents.size), tangents.rows
    kernel = x.new_empty(len(x) * c, len(columns) * c)
    for i in range(0, len(x), size):
        left = tangents.of(x[i : i + size])
        for j in range(i if x2 is None else 0, len(columns), size):
            same = x2 is None and i == j
            right = left if same else tangents.of(columns[j : j + size])
            block = left[1] @ right[1].T
            for (h, d), (h2, d2) in zip(left[0], right[0], strict=True):
                block += (h @ h2.T) * (d @ d2.T)
            kernel[i * c : i * c + len(block), j * c : j * c + block.shape[1]] = block
            if x2 is None and not same:
                kernel[j * c : j * c + block.shape[1], i * c : i * c + len(block)] = block.T
    return kernel


def _linear_maps(
    model: nn.Module, run: Run, values: Parameters, x: Tensor, masks: Mapping[str, Tensor]
) -> list[_Linear]:
    """Linear maps whose part of the kernel factors: unmasked, unshared, called once with one vector for each point."""
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    names = {id(p): name for name, p in model.named_parameters()}
    found = []
    candidates = [m for m in model.modules() if type(m) is nn.Linear]
    with _watched(candidates) as seen, torch.no_grad():
        run(values, x)
    for m in candidates:
        own = [p for p in (m.weight, m.bias) if p is not None]
        whole = m in seen and seen[m][0].shape == (len(x), m.in_features) and seen[m][2] == 1
        if whole and all(uses[id(p)] == 1 and names[id(p)] not in masks for p in own):
            weight, bias = ([names[id(p)] for p in own] + [""])[:2]
            found.append(_Linear(m, weight if weight in values else "", bias if bias in values else ""))
    return found


@contextmanager
def _watched(modules: list[nn.Linear]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor, int]]]:
    """Input, a zero added to the output (its gradient is the output's), and number of calls, as the model runs."""
    seen: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        shift = torch.zeros_like(out).requires_grad_()
        seen[module] = (args[0], shift, seen[module][2] + 1 if module in seen else 1)
        return out + shift

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield seen


def _push(run: Run, values: Parameters, x: Tensor, direction: Parameters) -> tuple[Tensor, Tensor]:
    """Outputs, and their derivative along a direction: J^T u is linear in u, so its transpose is J."""
    out, pull = vjp(lambda p: run(p, x), values)[:2]
    push = vjp(lambda u: pull(u)[0], torch.zeros_like(out))[1]
    change: Tensor = push(direction)[0]
    return out, change
