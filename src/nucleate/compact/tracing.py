"""Tracing, with operations in place rewritten so that the graph says by itself who reads which value."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

_VIEWS = {
    *("getitem", "getattr", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("transpose", "swapaxes", "swapdims", "t", "permute", "movedim", "moveaxis", "expand", "expand_as", "narrow"),
    *("select", "chunk", "split", "tensor_split", "unbind", "diagonal", "unfold", "contiguous", "detach"),
    *("to", "float", "type_as", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
    "feature_alpha_dropout",
}
"""Functions and methods whose result may lie in the memory of their first argument."""

_WRITES = {
    name: getattr(operator, name)
    for name in dir(operator)
    if name.startswith("__i") and hasattr(operator, name.replace("__i", "__", 1))
}
"""+= and its like."""

_SIZES = ("size", "dim", "numel", "len")


class _Proxy(fx.Proxy):
    """A value on which += is recorded as what it is; torch's own records a + b."""


def _recorded(write: Callable[..., Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", write, (self, other), {})


for _symbol, _write in _WRITES.items():
    setattr(_Proxy, _symbol, _recorded(_write))


class Tracer(fx.Tracer):
    """Traces a module, operations in place included."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A value of the traced code."""
        return _Proxy(node, self)

    def graph_of(self, module: nn.Module) -> fx.GraphModule:
        """The module as a graph in which no value changes: see `redirect`."""
        graph = self.trace(module)
        for node in graph.nodes:
            if "input" in node.kwargs and not node.args and _is_torchs(node):
                node.args = (node.kwargs["input"],)
                node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        redirect(graph, dict(module.named_modules()))
        return fx.GraphModule(module, graph, type(module).__name__)


def redirect(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let whoever reads a tensor after an operation in place read that operation's result instead.

    The graph computes what it did; its nodes are then values that do not change.

    Raises:
        ValueError: if one view of a tensor is overwritten and another one is read afterwards.

    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         h = x + 1
    ...         h.mul_(2)
    ...         return h
    >>> graph = fx.Tracer().trace(Net())
    >>> redirect(graph, {})
    >>> [str(node.args[0]) for node in graph.nodes if node.op == "output"]
    ['mul_']
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    owner: dict[fx.Node, fx.Node] = {}
    numbers: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_number(node, numbers):
            numbers.add(node)
            continue
        source = next(iter(node.all_input_nodes), None)
        in_place = _is_in_place(node, modules)
        shares = source is not None and (in_place or _is_view(node, modules))
        owner[node] = owner.get(source, node) if shares and source is not None else node
        if not in_place or source is None:
            continue
        source.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: order[user] > order[node])
        for other in (n for n, o in owner.items() if o is owner[node] and n is not node):
            if any(order[user] > order[node] for user in other.users):
                raise ValueError(f"{node.name} overwrites memory that is read again as {other.name}")


def _is_torchs(node: fx.Node) -> bool:
    """Whether it calls torch's own code, where an argument `input` is the first."""
    module = getattr(node.target, "__module__", None) or "torch"
    return node.op == "call_module" or module.partition(".")[0] == "torch"


def readers(graph: fx.Graph) -> Counter[str]:
    """How often each module is called, or a tensor of it read, by name."""
    return Counter(
        str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    )


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_number(node: fx.Node, numbers: set[fx.Node]) -> bool:
    """Whether it is a size, or made of sizes: += makes another number."""
    if _name(node) in _SIZES or (_name(node) == "getattr" and node.args[1] in ("shape", "ndim")):
        return True
    plain = getattr(node.target, "__module__", None) in ("_operator", "builtins", "math")
    return plain and bool(node.all_input_nodes) and numbers.issuperset(node.all_input_nodes)


def _is_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module":
        return _name(node) in _VIEWS
    module = modules[str(node.target)]
    same = isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten | _DropoutNd)
    return same or (isinstance(module, nn.Sequential) and not len(module))


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    return node.target in _WRITES.values() or _name(node).endswith("_") or bool(_given(node, "inplace"))


def _given(node: fx.Node, name: str) -> object:
    """An argument of a function by name; None where it is not given."""
    if name in node.kwargs or not inspect.isfunction(node.target):
        return node.kwargs.get(name)
    return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)
