"""Many multi-layer perceptrons of one depth as batched products: a hand-written forward and backward pass.

R networks lie in R rows of one matrix, each row all parameters of one network. Narrower networks are padded with zeros
to the widest: a padded unit has zero weights in and out, so it stays at zero and so does its gradient.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from nucleate.training.draws import seeded

Loss = Literal["cross-entropy", "mse"]
ALIGN = 16
"""Rows begin at multiples of this many values, so that every network meets the same memory alignment."""
PROBES = 32
"""Random points on which a network's own forward pass is compared with the chain of its modules."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Layer:
    """A linear map and what follows it: names of the modules in the network, and sizes."""

    linear: str
    norm: str | None
    relu: bool
    inputs: int
    outputs: int
    bias: bool


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers of a chain (Linear, optional BatchNorm1d, optional ReLU), ... ending in a Linear.

    Raises:
        ValueError: if the modules are not such a chain; names the first that does not fit.

    >>> [layer.outputs for layer in layers_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))]
    [8, 3]
    """
    found: list[Layer] = []
    for name, module in model.named_modules():
        if next(module.children(), None) is not None or isinstance(module, nn.Flatten | nn.Identity):
            continue
        last = found[-1] if found else None
        if isinstance(module, nn.Linear):
            found.append(
                Layer(name, None, False, module.in_features, module.out_features, module.bias is not None),
            )
        elif isinstance(module, nn.BatchNorm1d) and last and not last.relu and last.norm is None and _usual(module):
            found[-1] = Layer(last.linear, name, False, last.inputs, last.outputs, last.bias)
        elif isinstance(module, nn.ReLU) and last and not last.relu:
            found[-1] = Layer(last.linear, last.norm, True, last.inputs, last.outputs, last.bias)
        elif next(module.parameters(recurse=False), None) is not None or not isinstance(module, nn.Sequential):
            raise ValueError(
                f"only chains of Linear, BatchNorm1d and ReLU are trained stacked; "
                f"{name or 'the model'!r} is {type(module).__name__}"
            )
    if not found or found[-1].relu or found[-1].norm is not None:
        raise ValueError("only networks that end in a Linear are trained stacked")
    return found


def chain_of(model: nn.Module) -> list[Layer]:
    """The layers of a network whose own forward pass, in training and in eval mode, is the chain of its modules.

    It is asked at random weights and inputs, so that what its present weights hide (a branch that begins at zero) is
    seen; the model and torch's generators stay as they are.

    Raises:
        ValueError: if its modules are no chain, or its forward pass does anything else: a skip, functional dropout.

    >>> len(chain_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))))
    2
    """
    layers = layers_of(model)
    names = {f"{x.linear}.{part}" for x in layers for part in ("weight", "bias") if part == "weight" or x.bias}
    names |= {f"{x.norm}.{part}" for x in layers if x.norm for part in ("weight", "bias")}
    buffers = {f"{x.norm}.{name}" for x in layers if x.norm for name in BUFFERS}
    held = {name for name, p in model.named_parameters() if p.requires_grad}
    if held != names or {name for name, _ in model.named_buffers()} != buffers or not _runs_as(model, layers):
        raise ValueError(
            f"{type(model).__name__} is no plain chain of its Linear, BatchNorm1d and ReLU modules, all of them "
            "trained, as stacked networks are: take one that is, an mlp say"
        )
    return layers


@torch.no_grad()
def _runs_as(model: nn.Module, layers: Sequence[Layer]) -> bool:
    draw = Generator().manual_seed(0)
    own = copy.deepcopy(model).cpu()
    for parameter in own.parameters():
        drawn = torch.randn(parameter.shape, generator=draw) / math.sqrt(parameter[0].numel())
        parameter.copy_(drawn)
    x = torch.randn(PROBES, layers[0].inputs, generator=draw).to(next(own.parameters()))
    for mode in (False, True):
        expected, found = _plain(own.train(mode), layers, x), []
        for seed in (0, 1):
            with seeded(seed, "chain", "cpu"):
                try:
                    found.append(own(x))
                # The network is the user's, made for other inputs perhaps, and may raise anything.
                except Exception:
                    return False
        if any(not isinstance(z, Tensor) or z.shape != expected.shape for z in found):
            return False
        far = (found[0] - expected).abs().max() > 1e-4 * expected.abs().max()
        if far or not torch.equal(*found):
            return False
    return True


def _plain(model: nn.Module, layers: Sequence[Layer], h: Tensor) -> Tensor:
    """The chain's outputs, computed from the modules' tensors, which stay as they are."""
    for layer in layers:
        linear = model.get_submodule(layer.linear)
        h = F.linear(h, linear.weight, linear.bias)  # type: ignore[arg-type]
        if layer.norm:
            norm = model.get_submodule(layer.norm)
            mean, var = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[operator]
            h = F.batch_norm(h, mean, var, norm.weight, norm.bias, norm.training)  # type: ignore[arg-type]
        h = h.relu() if layer.relu else h
    return h


def _usual(module: nn.BatchNorm1d) -> bool:
    return module.affine and module.track_running_stats and module.momentum == 0.1 and module.eps == 1e-5


class Chain:
    """Where the parameters of R chains of one depth lie in their rows, and how they are run.

    Raises:
        ValueError: if the networks are no chains, or differ in more than the widths of their hidden layers.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.layers = [chain_of(model) for model in models]
        kinds = {tuple((x.linear, x.norm, x.relu, x.bias) for x in own) for own in self.layers}
        ends = {(own[0].inputs, own[-1].outputs) for own in self.layers}
        if len(kinds) > 1 or len(ends) > 1:
            raise ValueError("stacked networks may differ in the widths of their hidden layers only")
        self.depth = len(self.layers[0])
        widest = [max(own[i].outputs for own in self.layers) for i in range(self.depth)]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.slices: dict[str, slice] = {}
        start, inputs = 0, self.layers[0][0].inputs
        for layer, outputs in zip(self.layers[0], widest, strict=True):
            sizes: dict[str, tuple[int, ...]] = {f"{layer.linear}.weight": (outputs, inputs)}
            sizes |= {f"{layer.linear}.bias": (outputs,)} if layer.bias else {}
            sizes |= {f"{layer.norm}.{part}": (outputs,) for part in ("weight", "bias") if layer.norm}
            for name, shape in sizes.items():
                self.shapes[name] = shape
                self.slices[name] = slice(start, start + torch.Size(shape).numel())
                start = self.slices[name].stop
            inputs = outputs
        self.row = -(-start // ALIGN) * ALIGN
        self.norms = {x.norm: w for x, w in zip(self.layers[0], widest, strict=True) if x.norm}

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Parameters (R, *padded shape) by name, as views of rows (R, row)."""
        return {n: rows[:, s].unflatten(1, self.shapes[n]) for n, s in self.slices.items()}

    def put(self, rows: Tensor, index: int, values: Mapping[str, Tensor]) -> None:
        """Write one network's tensors, by parameter name, into the upper left corners of row `index`."""
        for name, view in self.views(rows).items():
            if name in values:
                view[index][tuple(slice(n) for n in values[name].shape)] = values[name].to(rows)

    def get(self, rows: Tensor, index: int, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Copies of one network's tensors, without padding."""
        views = self.views(rows)
        return {name: views[name][index][tuple(slice(n) for n in shapes[name])].clone() for name in self.slices}

    def logits(self, p: Mapping[str, Tensor], running: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs (R, N, C) in eval mode for inputs (N, d), or (R, N, d)."""
        h = x.expand(len(p[f"{self.layers[0][0].linear}.weight"]), *x.shape) if x.ndim == 2 else x
        for layer in self.layers[0]:
            h = _linear(p, layer, h)
            if layer.norm:
                mean, var = (running[f"{layer.norm}.running_{k}"].unsqueeze(1) for k in ("mean", "var"))
                scale = p[f"{layer.norm}.weight"].unsqueeze(1) * (var + 1e-5).rsqrt()
                h = (h - mean) * scale + p[f"{layer.norm}.bias"].unsqueeze(1)
            if layer.relu:
                h.relu_()
        return h

    def backward(
        self,
        p: Mapping[str, Tensor],
        g: Mapping[str, Tensor],
        running: Mapping[str, Tensor],
        x: Tensor,
        targets: Tensor,
        loss: Loss,
    ) -> Tensor:
        """Write each network's gradient of its own mean loss into g; returns the losses (R,).

        Args:
            p: parameters by name, (R, *shape).
            g: gradients by name, written over.
            running: running means and variances of batch normalisation, updated.
            x: inputs (R, B, d).
            targets: one-hot (R, B, C).
            loss: cross-entropy, or squared error averaged over points and classes.
        """
        inputs, normed = [x], []
        for layer in self.layers[0]:
            z = _linear(p, layer, inputs[-1])
            if layer.norm:
                unit, inverse = _normalise(z, running, layer.norm)
                normed.append((unit, inverse))
                z = torch.addcmul(p[f"{layer.norm}.bias"].unsqueeze(1), unit, p[f"{layer.norm}.weight"].unsqueeze(1))
            inputs.append(z.relu_() if layer.relu else z)
        value, d = _loss(inputs.pop(), targets, loss)
        for i in reversed(range(self.depth)):
            layer, h = self.layers[0][i], inputs[i]
            if layer.norm:
                unit, inverse = normed.pop()
                d = _normalise_backward(d, unit, inverse, p, g, layer.norm)
            if layer.bias:
                torch.sum(d, 1, out=g[f"{layer.linear}.bias"])
            torch.bmm(d.mT, h, out=g[f"{layer.linear}.weight"])
            if i:
                d = torch.bmm(d, p[f"{layer.linear}.weight"])
                if self.layers[0][i - 1].relu:
                    # ReLU's output is positive exactly where its input was.
                    d = torch.ops.aten.threshold_backward(d, h, 0)
        return value


def _linear(p: Mapping[str, Tensor], layer: Layer, h: Tensor) -> Tensor:
    weight = p[f"{layer.linear}.weight"].mT
    return torch.baddbmm(p[f"{layer.linear}.bias"].unsqueeze(1), h, weight) if layer.bias else torch.bmm(h, weight)


def _loss(z: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    points, classes = z.shape[1:]
    if loss == "mse":
        d = z - targets
        return d.square().mean((1, 2)), d.mul_(2 / (points * classes))
    log = F.log_softmax(z, 2)
    value = (log * targets).sum((1, 2)).div_(-points)
    return value, log.exp_().sub_(targets).mul_(1 / points)


def _normalise(z: Tensor, running: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(z, 1, correction=0, keepdim=True)
    points = z.shape[1]
    running[f"{name}.running_mean"].lerp_(mean.squeeze(1), 0.1)
    # The running variance is the unbiased one, the one divided by is not.
    running[f"{name}.running_var"].lerp_(var.squeeze(1) * (points / (points - 1)), 0.1)
    inverse = (var + 1e-5).rsqrt_()
    return (z - mean).mul_(inverse), inverse


def _normalise_backward(
    d: Tensor, unit: Tensor, inverse: Tensor, p: Mapping[str, Tensor], g: Mapping[str, Tensor], name: str
) -> Tensor:
    shift, scale = g[f"{name}.bias"], g[f"{name}.weight"]
    torch.sum(d, 1, out=shift)
    torch.sum(d * unit, 1, out=scale)
    points = d.shape[1]
    centred = torch.addcmul(d, unit, scale.unsqueeze(1), value=-1 / points).sub_(shift.unsqueeze(1) / points)
    return centred.mul_(p[f"{name}.weight"].unsqueeze(1) * inverse)
