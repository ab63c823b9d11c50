"""What a traced network's channels are: which go together, which are constant, who reads them.

Every channel of every value is an atom; atoms that only go together (both sides of a sum, a channel and its
normalisation, the channels of a group) are one class.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from nucleate.compact.layers import (
    CONVOLUTIONS,
    TRANSPOSED,
    groups_of,
    is_activation,
    is_hooked,
    is_transposed,
    is_uneven,
    matrix,
    normalised,
    taps,
)
from nucleate.compact.tracing import readers

_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid),
)
_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MAXIMA = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample),
)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POINTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.gelu, F.silu, F.elu, F.leaky_relu, F.hardswish, F.sigmoid, F.tanh, F.mish, F.softplus),
    *(torch.relu, torch.sigmoid, torch.tanh, torch.relu_, torch.sigmoid_, torch.tanh_),
)
_POINTWISE_METHODS = ("relu", "sigmoid", "tanh", "relu_", "sigmoid_", "tanh_")
_MAXIMUM_FUNCTIONS = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.interpolate),
)
_AVERAGE_FUNCTIONS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


@dataclass
class Value:
    """The channels of what a node gives, along one axis of its tensor."""

    axis: int
    atoms: Tensor
    """Number of each channel's atom."""
    constant: Tensor
    """float64: the value of a channel that is constant, NaN of one that is not."""


class Channels:
    """The channels of one traced graph."""

    def __init__(self, name: str, graph: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
        self.name, self.graph = name, graph
        self.modules = dict(graph.named_modules())
        reads = readers(graph.graph)
        owners = Counter(id(p) for m in self.modules.values() for p in m._parameters.values() if p is not None)
        self.alone = {
            name
            for name, m in self.modules.items()
            if reads[name] == 1
            and not is_parametrized(m)
            and all(owners[id(p)] == 1 and p.numel() for p in m._parameters.values() if p is not None)
        }

    def _analyse(self) -> None:
        self.parent: list[int] = []
        self.values: dict[fx.Node, Value] = {}
        self.kept: set[int] = set()
        for node in self.graph.graph.nodes:
            value = self._forward(node)
            if value is not None:
                self.values[node] = value

    def _fresh(self, count: int, *, kept: bool = False) -> Tensor:
        start = len(self.parent)
        self.parent += range(start, start + count)
        if kept:
            self.kept |= set(range(start, start + count))
        return torch.arange(start, start + count)

    def _find(self, atom: int) -> int:
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def _join(self, first: Tensor, second: Tensor) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self.parent[self._find(b)] = self._find(a)

    def _forward(self, node: fx.Node) -> Value | None:
        kind, module = self._kind(node)
        sources = [self.values.get(a) for a in node.all_input_nodes]
        source = sources[0] if sources else None
        if kind == "layer" and source is not None and module is not None:
            return self._layer(module, source)
        if kind in ("norm", "pointwise", "same", "maximum", "average") and source is not None:
            constant = source.constant
            if kind == "norm":
                constant = normalised(cast(_BatchNorm, module), constant)
            elif kind == "pointwise":
                constant = self._apply(node, module, constant)
            elif kind == "average" and (is_uneven(module) or getattr(module, "divisor_override", None)):
                constant = torch.where(constant == 0, constant, torch.nan)
            return Value(source.axis, source.atoms, constant)
        if kind in ("sum", "product"):
            first, second = sources if len(sources) == 2 else (source, source)
            if first is not None and second is not None and self._alike(node):
                self._join(first.atoms, second.atoms)
                a, b = first.constant, second.constant
                # What is multiplied by 0 is 0, whatever it was.
                times = torch.where((a == 0) | (b == 0), 0.0, a * b)
                return Value(first.axis, first.atoms, a + b if kind == "sum" else times)
        if kind == "cat" and all(s is not None and s.axis == 1 for s in sources):
            parts = cast(list[Value], sources)
            return Value(1, torch.cat([p.atoms for p in parts]), torch.cat([p.constant for p in parts]))
        if kind == "flatten" and source is not None:
            each = self._width(node) // max(1, len(source.atoms))
            return Value(1, source.atoms.repeat_interleave(each), source.constant.repeat_interleave(each))
        if kind == "points":
            return None
        # Anything else reads all that it gets, and what it gives stays.
        for s in sources:
            if s is not None:
                self.kept |= set(s.atoms.tolist())
        meta = node.meta.get("tensor_meta")
        if node.op == "output" or meta is None or not isinstance(meta, tuple) or not hasattr(meta, "shape"):
            return None
        if len(meta.shape) < 2:
            return None
        axis = 2 if len(meta.shape) == 3 and not self._feeds_conv1d(node) else 1
        atoms = self._fresh(meta.shape[axis], kept=True)
        return Value(axis, atoms, torch.full((len(atoms),), torch.nan, dtype=torch.float64))

    def _kind(self, node: fx.Node) -> tuple[str, nn.Module | None]:
        source = self.values.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            alone = str(node.target) in self.alone
            dims = len(node.all_input_nodes[0].meta["tensor_meta"].shape) if node.all_input_nodes else 0
            if source is None or is_hooked(module):
                return "other", module
            last = source.axis == dims - 1
            if (isinstance(module, nn.Linear) or is_transposed(module)) and alone and last:
                return "layer", module
            known = isinstance(module, CONVOLUTIONS) or (isinstance(module, TRANSPOSED) and module.groups == 1)
            if known and alone and source.axis == 1 and dims == cast(Tensor, module.weight).dim():
                return "layer", module
            if isinstance(module, _BatchNorm) and alone and source.axis == 1 and module.running_mean is not None:
                return "norm", module
            if isinstance(module, _POINTWISE) or is_activation(module):
                return "pointwise", module
            if isinstance(module, _SAME) or (isinstance(module, nn.Sequential) and not len(module)):
                return "same", module
            if source.axis == 1 and isinstance(module, _MAXIMA):
                return "maximum", module
            if source.axis == 1 and isinstance(module, _AVERAGES):
                return "average", module
            if isinstance(module, nn.Flatten) and source.axis == 1 and module.start_dim == 1 and module.end_dim == -1:
                return "flatten", module
        elif node.op in ("call_function", "call_method") and source is not None:
            target = node.target
            if target in _POINTWISE_FUNCTIONS or target in _POINTWISE_METHODS:
                return "pointwise", None
            if target in (F.dropout, F.dropout2d, "contiguous"):
                return "same", None
            if target in _SUMS:
                return "sum", None
            if target in _PRODUCTS:
                return "product", None
            if target in (torch.cat, torch.concat) and (node.args[1:] or (node.kwargs.get("dim", 0),))[0] == 1:
                return "cat", None
            if _is_points(node) or (target is getattr and all(_is_points(user) for user in node.users)):
                return "points", None
            if source.axis == 1 and self._flattens(node):
                return "flatten", None
            if target in _MAXIMUM_FUNCTIONS and source.axis == 1:
                return "maximum", None
            # A divisor or padding of an average changes constants.
            plain = len(node.args) <= 3 and set(node.kwargs) <= {"kernel_size", "stride", "ceil_mode"}
            if target in _AVERAGE_FUNCTIONS and source.axis == 1 and plain:
                return "maximum", None
            if target in (torch.mean, "mean") and source.axis == 1 and self._averages_positions(node):
                return "maximum", None
        return "other", None

    def _flattens(self, node: fx.Node) -> bool:
        """Whether everything but the points becomes one axis."""
        first = node.all_input_nodes[0]
        if node.target in (torch.flatten, "flatten"):
            given = {**dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)), **node.kwargs}
            return given in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})
        if node.target not in (torch.reshape, "reshape", "view") or node.kwargs:
            return False
        shape = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        points, rest = shape if len(shape) == 2 else (None, None)
        same = first.meta["tensor_meta"].shape[0] == node.meta["tensor_meta"].shape[0]
        return isinstance(points, fx.Node) and _is_points(points) and bool(rest == -1) and bool(same)

    def _averages_positions(self, node: fx.Node) -> bool:
        """Whether a mean is taken over all axes behind the channels."""
        over = {**dict(zip(("dim", "keepdim"), node.args[1:], strict=False)), **node.kwargs}.get("dim")
        dims = len(node.all_input_nodes[0].meta["tensor_meta"].shape)
        axes = over if isinstance(over, tuple | list) else (over,)
        if not all(isinstance(a, int) for a in axes):
            return False
        return dims > 2 and {cast(int, a) % dims for a in axes} == set(range(2, dims))

    def _feeds_conv1d(self, node: fx.Node) -> bool:
        """Whether the second of three axes holds the channels: of text and tokens it is the third."""
        return any(u.op == "call_module" and isinstance(self.modules[str(u.target)], nn.Conv1d) for u in node.users)

    def _alike(self, node: fx.Node) -> bool:
        """Whether a sum or a product is taken channel by channel of two tensors."""
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            return False
        first, second = (self.values.get(cast(fx.Node, a)) for a in node.args)
        if first is None or second is None:
            return False
        shapes = [cast(fx.Node, a).meta["tensor_meta"].shape for a in node.args]
        return len(shapes[0]) == len(shapes[1]) and first.axis == second.axis and len(first.atoms) == len(second.atoms)

    def _width(self, node: fx.Node) -> int:
        return int(node.meta["tensor_meta"].shape[1])

    def _layer(self, module: nn.Module, source: Value) -> Value:
        weight = matrix(module)
        groups = groups_of(module)
        outputs, per_group = len(weight), len(weight) // groups
        atoms = self._fresh(outputs)
        for g in range(groups) if groups > 1 else ():
            # A group goes as a whole, so that all groups keep one size.
            inside = source.atoms[g * weight.shape[1] : (g + 1) * weight.shape[1]]
            together = torch.cat([inside, atoms[g * per_group : (g + 1) * per_group]])
            self._join(together[:1].expand(len(together) - 1), together[1:])
        constant = torch.zeros(outputs, dtype=torch.float64) + (
            0.0 if module.bias is None else cast(Tensor, module.bias).double()
        )
        for g in range(groups):
            rows = slice(g * per_group, (g + 1) * per_group)
            inside_constant = source.constant[g * weight.shape[1] : (g + 1) * weight.shape[1]]
            if is_uneven(module):
                inside_constant = torch.where(inside_constant == 0, inside_constant, torch.nan)
            summed, reads = taps(weight[rows].double()).sum(2), taps(weight[rows] != 0).any(2)
            constant[rows] += torch.where(reads, summed * inside_constant, 0.0).sum(1)
        return Value(1 if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) else source.axis, atoms, constant)

    def _apply(self, node: fx.Node, module: nn.Module | None, constant: Tensor) -> Tensor:
        """An elementwise function of the constants; NaN stays NaN."""
        if module is not None:
            result = module(constant.float()).double()
        elif node.op == "call_method":
            result = getattr(constant.clone(), str(node.target))()
        else:
            result = cast(Any, node.target)(constant.float(), *node.args[1:], **{**node.kwargs, **_out_of_place(node)})
        return torch.where(constant.isnan(), torch.nan, cast(Tensor, result).double())


def _out_of_place(node: fx.Node) -> dict[str, bool]:
    return {"inplace": False} if "inplace" in node.kwargs else {}


def _is_points(node: fx.Node) -> bool:
    """Whether it reads the number of points, size(0) or shape[0], which no channel changes."""
    if node.target == "size":
        return (*node.args[1:], *node.kwargs.values()) == (0,)
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    shape = node.args[0]
    return isinstance(shape, fx.Node) and shape.target is getattr and shape.args[1] == "shape"
