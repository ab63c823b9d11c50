"""Physically remove units and channels that are dead: the same function, in a smaller network of the same classes.

A channel is dead if it is constant, which then is folded into the biases of its readers, or if nobody reads it. Every
channel of every value is an atom; atoms that only go together (both sides of a sum, a channel and its normalisation,
the channels of a group) are one class, which goes as a whole once none of it is read. That is repeated until nothing
more goes: what a removed unit read may be read by nobody else.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm

from nucleate.compact.fold import masked
from nucleate.probes.tap import first_tensor

TOLERANCE = 1e-5
"""Largest difference of an output, relative to the largest output, that counts as the same function."""

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid),
)
_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MAXIMA = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POINTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.gelu, F.silu, F.elu, F.leaky_relu, F.hardswish, F.sigmoid, F.tanh, F.mish, F.softplus),
    *(torch.relu, torch.sigmoid, torch.tanh),
)
_POINTWISE_METHODS = ("relu", "sigmoid", "tanh")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


@dataclass
class _Value:
    """The channels of what a node gives, along one axis of its tensor."""

    axis: int
    atoms: Tensor
    """Number of each channel's atom."""
    constant: Tensor
    """float64: the value of a channel that is constant, NaN of one that is not."""


def shrink(model: nn.Module, masks: Mapping[str, Tensor] | None, example: Any) -> nn.Module:
    """A smaller copy of a pruned model in eval mode with the same outputs: dead units and channels are gone.

    Through residual sums, concatenation, grouped and depthwise convolutions, batch normalisation, gated products and
    flattening. A model that cannot be traced as a whole is shrunk module by module, inputs and outputs kept. A constant
    that a padded convolution reads cannot go into a bias, for the border sees less of it: all such channels become one.

    Args:
        model: any module; never changed. The result has its classes, with smaller layers.
        masks: 0 where a weight is pruned, by parameter name; none: whatever is 0 counts as pruned.
        example: a tensor, a tuple of arguments or a dict of keywords; the result serves all sizes that the model does.

    Raises:
        ValueError: for a mask that fits no parameter; if the smaller model's outputs differ by more than 1e-5.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> mask = torch.ones(16, 8); mask[:12] = 0
    >>> small = shrink(net, {"0.weight": mask}, torch.ones(2, 8))
    >>> small[0], small[2]
    (Linear(in_features=8, out_features=4, bias=True), Linear(in_features=4, out_features=4, bias=True))
    """
    out = masked(model, masks)
    with torch.no_grad():
        expected = first_tensor(_call(out, example), "the model")
        for name, module, inputs in list(_traceable(out, example)):
            _Shrinker(name, module, inputs).run()
        try:
            got = first_tensor(_call(out, example), "the model")
        # The model's own code may count on its sizes.
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} does not run with smaller layers ({error}): its code counts on their sizes; "
                "shrink the part that does not"
            ) from error
    difference = float((got - expected).abs().max()) if got.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ValueError(
            f"shrinking {type(model).__name__} changed its outputs by {difference:.2g}; nothing is returned"
        )
    return out


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch, and activations and the transposed linear map of `transformers`, are not looked into."""
        return _is_transposed(m) or _is_activation(m) or super().is_leaf_module(m, module_qualified_name)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "transformers.activations" and not list(module.parameters())


def _traceable(model: nn.Module, example: Any) -> Iterator[tuple[str, fx.GraphModule, tuple[Any, ...]]]:
    """The largest modules that can be traced, with the arguments that they get; none inside another."""
    arguments: dict[str, tuple[Any, ...] | None] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plain = not kwargs and all(isinstance(a, Tensor) for a in args)
        # A module that runs twice would have to shrink for both.
        arguments[name] = args if plain and name not in arguments else None

    hooks = [
        m.register_forward_pre_hook(lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True)
        for name, m in model.named_modules()
    ]
    _call(model, example)
    for hook in hooks:
        hook.remove()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, fx.GraphModule, tuple[Any, ...]]]:
        args = arguments.get(name)
        if args is not None and (not name or next(module.children(), None) is not None):
            try:
                tracer = _Tracer()
                graph = fx.GraphModule(module, tracer.trace(module))
                ShapeProp(graph).propagate(*args)
            # The user's code runs on placeholders here, and may raise anything: its parts are tried.
            except Exception:
                graph = None
            if graph is not None:
                yield name, graph, args
                return
        for child, inner in module.named_children():
            yield from walk(f"{name}.{child}".lstrip("."), inner)

    yield from walk("", model)


class _Shrinker:
    """Shrinks the modules of one graph in place."""

    def __init__(self, name: str, graph: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
        self.name, self.graph = name, graph
        self.modules = dict(graph.named_modules())
        calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
        owners = Counter(id(p) for m in self.modules.values() for p in m._parameters.values() if p is not None)
        self.alone = {
            name
            for name, m in self.modules.items()
            if calls[name] == 1 and all(owners[id(p)] == 1 for p in m._parameters.values() if p is not None)
        }

    def run(self) -> None:
        """Fold and remove until nothing more goes."""
        while True:
            self._analyse()
            self._fold()
            if not self._remove():
                return

    # What is constant, and which channels go together.

    def _analyse(self) -> None:
        self.parent: list[int] = []
        self.values: dict[fx.Node, _Value] = {}
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

    def _forward(self, node: fx.Node) -> _Value | None:
        kind, module = self._kind(node)
        sources = [self.values.get(a) for a in node.all_input_nodes]
        source = sources[0] if sources else None
        if kind == "layer" and source is not None and module is not None:
            return self._layer(module, source)
        if kind in ("norm", "pointwise", "same", "maximum", "average") and source is not None:
            constant = source.constant
            if kind == "norm":
                constant = _normalised(cast(_BatchNorm, module), constant)
            elif kind == "pointwise":
                constant = self._apply(node, module, constant)
            elif kind == "average" and _is_padded(cast(nn.Module, module)):
                constant = torch.where(constant == 0, constant, torch.nan)
            return _Value(source.axis, source.atoms, constant)
        if kind in ("sum", "product"):
            first, second = sources if len(sources) == 2 else (source, source)
            if first is not None and second is not None and self._alike(node):
                self._join(first.atoms, second.atoms)
                a, b = first.constant, second.constant
                # What is multiplied by 0 is 0, whatever it was.
                times = torch.where((a == 0) | (b == 0), 0.0, a * b)
                return _Value(first.axis, first.atoms, a + b if kind == "sum" else times)
        if kind == "cat" and all(s is not None and s.axis == 1 for s in sources):
            parts = cast(list[_Value], sources)
            return _Value(1, torch.cat([p.atoms for p in parts]), torch.cat([p.constant for p in parts]))
        if kind == "flatten" and source is not None:
            each = self._width(node) // max(1, len(source.atoms))
            return _Value(1, source.atoms.repeat_interleave(each), source.constant.repeat_interleave(each))
        # Anything else reads all that it gets, and what it gives stays.
        for s in sources:
            if s is not None:
                self.kept |= set(s.atoms.tolist())
        meta = node.meta.get("tensor_meta")
        if node.op == "output" or meta is None or not isinstance(meta, tuple) or not hasattr(meta, "shape"):
            return None
        if len(meta.shape) < 2:
            return None
        axis = 1 if len(meta.shape) != 3 else 2
        atoms = self._fresh(meta.shape[axis], kept=True)
        return _Value(axis, atoms, torch.full((len(atoms),), torch.nan, dtype=torch.float64))

    def _kind(self, node: fx.Node) -> tuple[str, nn.Module | None]:
        source = self.values.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            alone = str(node.target) in self.alone
            dims = len(node.all_input_nodes[0].meta["tensor_meta"].shape) if node.all_input_nodes else 0
            if source is None:
                return "other", module
            last = source.axis == dims - 1
            if (isinstance(module, nn.Linear) or _is_transposed(module)) and alone and last:
                return "layer", module
            if isinstance(module, _CONV) and alone and source.axis == 1:
                return "layer", module
            if isinstance(module, _BatchNorm) and alone and source.axis == 1 and module.running_mean is not None:
                return "norm", module
            if isinstance(module, _POINTWISE) or _is_activation(module):
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
            if target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs and source.axis == 1:
                return "flatten", None
            if target in (F.max_pool2d, F.adaptive_avg_pool2d) and source.axis == 1:
                return "maximum", None
            whole = {**dict(zip(("dim", "keepdim"), node.args[1:], strict=False)), **node.kwargs}.get("dim")
            if target in (torch.mean, "mean") and source.axis == 1 and whole in ((2, 3), [2, 3], (-2, -1), [-2, -1]):
                return "maximum", None
        return "other", None

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

    def _layer(self, module: nn.Module, source: _Value) -> _Value:
        weight = _matrix(module)
        groups = _groups(module)
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
            if _is_padded(module):
                inside_constant = torch.where(inside_constant == 0, inside_constant, torch.nan)
            summed, reads = _taps(weight[rows].double()).sum(2), _taps(weight[rows] != 0).any(2)
            constant[rows] += torch.where(reads, summed * inside_constant, 0.0).sum(1)
        return _Value(1 if isinstance(module, _CONV) else source.axis, atoms, constant)

    def _apply(self, node: fx.Node, module: nn.Module | None, constant: Tensor) -> Tensor:
        """An elementwise function of the constants; NaN stays NaN."""
        if module is not None:
            result = module(constant.float()).double()
        elif node.op == "call_method":
            result = getattr(constant, str(node.target))()
        else:
            result = cast(Any, node.target)(constant.float(), *node.args[1:], **{**node.kwargs, **_out_of_place(node)})
        return torch.where(constant.isnan(), torch.nan, cast(Tensor, result).double())

    # Constants go into biases.

    def _fold(self) -> None:
        for node in self.graph.graph.nodes:
            kind, module = self._kind(node)
            if kind != "layer" or module is None:
                continue
            constant = self.values[node.all_input_nodes[0]].constant
            weight, groups = _matrix(module), _groups(module)
            inputs, per_group = weight.shape[1], len(weight) // groups
            for g in range(groups):
                rows, own = slice(g * per_group, (g + 1) * per_group), constant[g * inputs : (g + 1) * inputs]
                known = ~own.isnan()
                if not known.any():
                    continue
                if not _is_padded(module):
                    shift = (_taps(weight[rows][:, known].double()).sum(2) * own[known]).sum(1)
                    _add_bias(module, rows, shift)
                    weight[rows, known] = 0
                    continue
                weight[rows, own == 0] = 0
                left = (known & (own != 0)).nonzero()[:, 0]
                if len(left) > 1:
                    # The border sees less of a constant than the middle: one channel stands for all of them.
                    one = left[own[left].abs().argmax()]
                    shape = [1, -1] + [1] * (weight.dim() - 2)
                    share = (own[left] / own[one]).view(shape)
                    total = (weight[rows][:, left].double() * share).sum(1).to(weight.dtype)
                    weight[rows, left] = 0
                    weight[rows, one] = total
            _set_matrix(module, weight)

    # What nobody reads goes.

    def _remove(self) -> bool:
        used: dict[fx.Node, Tensor] = {n: torch.zeros(len(v.atoms), dtype=torch.bool) for n, v in self.values.items()}
        alive = {self._find(a) for a in self.kept}
        for node in reversed(self.graph.graph.nodes):
            own = used.get(node)
            if own is not None and node in self.values:
                atoms = self.values[node].atoms.tolist()
                own |= torch.tensor([self._find(a) in alive for a in atoms], dtype=torch.bool)
            kind, module = self._kind(node)
            for source in node.all_input_nodes:
                if source not in used:
                    continue
                if own is None or kind == "other":
                    used[source][:] = True
                elif kind == "layer" and module is not None:
                    weight, groups = _matrix(module), _groups(module)
                    live = torch.where(own.view(-1, *[1] * (weight.dim() - 1)), weight, 0) != 0
                    read = _taps(live).any(2).view(groups, -1, weight.shape[1]).any(1).reshape(-1)
                    used[source] |= read
                elif kind == "flatten":
                    used[source] |= own.view(len(used[source]), -1).any(1)
                elif kind == "cat":
                    start = 0
                    for part in cast(list[fx.Node], node.args[0]):
                        stop = start + len(used[part])
                        used[part] |= own[start:stop]
                        start = stop
                elif kind in ("sum", "product"):
                    if self._alike(node):
                        used[source] |= own
                    else:
                        used[source][:] = True
                else:
                    used[source] |= own
        for node, value in self.values.items():
            alive |= {self._find(a) for a in value.atoms[used[node]].tolist()}
        # A layer keeps one unit, dead as it is.
        for node, value in self.values.items():
            if self._kind(node)[0] == "layer" and not any(self._find(a) in alive for a in value.atoms.tolist()):
                alive.add(self._find(int(value.atoms[0])))
        return self._cut(alive)

    def _cut(self, alive: set[int]) -> bool:
        changed = False
        for node in self.graph.graph.nodes:
            kind, module = self._kind(node)
            if kind not in ("layer", "norm") or module is None:
                continue
            keep_in = self._alive(node.all_input_nodes[0], alive)
            keep_out = self._alive(node, alive)
            if bool(keep_in.all()) and bool(keep_out.all()):
                continue
            changed = True
            if kind == "norm":
                _cut_norm(cast(_BatchNorm, module), keep_out)
            else:
                _cut_layer(module, keep_in, keep_out)
        if changed:
            # Sizes changed: the shapes that flattening looks at did too.
            self._reshape(alive)
        return changed

    def _reshape(self, alive: set[int]) -> None:
        for node, value in self.values.items():
            meta = node.meta["tensor_meta"]
            shape = list(meta.shape)
            shape[value.axis] = int(self._alive(node, alive).sum())
            node.meta["tensor_meta"] = meta._replace(shape=torch.Size(shape))

    def _alive(self, node: fx.Node, alive: set[int]) -> Tensor:
        return torch.tensor([self._find(a) in alive for a in self.values[node].atoms.tolist()], dtype=torch.bool)


def _out_of_place(node: fx.Node) -> dict[str, bool]:
    return {"inplace": False} if "inplace" in node.kwargs else {}


def _matrix(module: nn.Module) -> Tensor:
    """A copy of the weights, (out, in / groups, ...)."""
    weight = cast(Tensor, module.weight).detach()
    return (weight.T if _is_transposed(module) else weight).clone()


def _taps(weight: Tensor) -> Tensor:
    """(out, in / groups, window) of weights with any window, or none."""
    return weight.reshape(*weight.shape[:2], -1)


def _set_matrix(module: nn.Module, weight: Tensor) -> None:
    old = cast(nn.Parameter, module.weight)
    new = weight.T.contiguous() if _is_transposed(module) else weight
    module.weight = nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def _is_padded(module: nn.Module) -> bool:
    """Whether zeros come in at the border; other kinds of padding repeat what is there."""
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding == "same"
    return bool(torch.tensor(padding).any())


def _normalised(norm: _BatchNorm, constant: Tensor) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    out = (constant - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
    if norm.weight is not None:
        out = out * norm.weight.double()
        # What is multiplied by 0 is constant, whatever came in.
        out = torch.where(norm.weight == 0, 0.0, out)
        out = out + norm.bias.double()
    return out


def _add_bias(module: nn.Module, rows: slice, shift: Tensor) -> None:
    bias, weight = cast(nn.Parameter | None, module.bias), cast(nn.Parameter, module.weight)
    if bias is None:
        if not bool(shift.any()):
            return
        outputs = weight.shape[1] if _is_transposed(module) else weight.shape[0]
        bias = nn.Parameter(weight.new_zeros(outputs), requires_grad=weight.requires_grad)
        module.bias = bias
    bias.data[rows] += shift.to(bias.dtype)


def _cut_norm(norm: _BatchNorm, keep: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(norm, name)
        if isinstance(tensor, nn.Parameter):
            setattr(norm, name, nn.Parameter(tensor.detach()[keep], requires_grad=tensor.requires_grad))
        elif tensor is not None:
            setattr(norm, name, tensor[keep])
    norm.num_features = int(keep.sum())


def _cut_layer(module: nn.Module, keep_in: Tensor, keep_out: Tensor) -> None:
    weight, groups = _matrix(module), _groups(module)
    if groups > 1:
        left = keep_out.view(groups, -1)[:, 0]
        weight = weight[keep_out]
        cast(Any, module).groups = int(left.sum())
    else:
        weight = weight[keep_out][:, keep_in]
    _set_matrix(module, weight)
    if module.bias is not None:
        bias = cast(nn.Parameter, module.bias)
        module.bias = nn.Parameter(bias.detach()[keep_out], requires_grad=bias.requires_grad)
    sizes = int(keep_in.sum()), int(keep_out.sum())
    names = ("in_channels", "out_channels") if isinstance(module, _CONV) else ("in_features", "out_features")
    if _is_transposed(module):
        names = ("nx", "nf")
    for name, size in zip(names, sizes, strict=True):
        setattr(module, name, size)
