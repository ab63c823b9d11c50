"""What the nodes of a traced network are to a plan: products, what is folded into them, what moves values."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from nucleate.compact.layers import is_hooked
from nucleate.compact.sparse import conv_padding

RELU = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
FLATTEN = (torch.flatten, "flatten")


class Reading:
    """Kinds of nodes, and the padding that their readers want around them."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.modules = dict(graph.named_modules())
        self._pads: dict[fx.Node, int] = {}
        for node in graph.graph.nodes:
            if node.op.startswith("call") and not node.args:
                raise ValueError(f"{node.name} gets its tensor by keyword")
            self._need(node)

    def _need(self, node: fx.Node) -> None:
        """Note the padding that a convolution wants around what it reads."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            padding = conv_padding(module)
            if module.padding_mode != "zeros":
                raise ValueError(f"{node.target}: padding mode {module.padding_mode!r}")
            source = self._source(node)
            while source.op != "placeholder" and self._kind(source) == "gelu":
                source = self._source(source)
            if max(module.stride) == 1:
                self._pads[source] = max(self._pads.get(source, 0), *padding)

    def _source(self, node: fx.Node) -> fx.Node:
        source = node.args[0]
        if not isinstance(source, fx.Node):
            raise ValueError(f"{node.name} reads no tensor")
        return self._through(source)

    def _through(self, node: fx.Node) -> fx.Node:
        """The node that really makes a value: ReLUs are folded, and dropout gives what it gets."""
        while node.op != "placeholder" and (self._kind(node) in ("relu", "same")):
            inner = node.args[0]
            assert isinstance(inner, fx.Node)
            node = inner
        return node

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if is_hooked(module):
                raise ValueError(f"{node.target} has forward hooks, which a plan leaves out")
            for kind, types in (
                ("product", nn.Linear | nn.Conv2d),
                ("relu", nn.ReLU),
                ("gelu", nn.GELU),
                ("same", nn.Identity | nn.Dropout | nn.Dropout2d),
                ("flatten", nn.Flatten),
                ("maximum", nn.MaxPool2d),
                ("average", nn.AvgPool2d | nn.AdaptiveAvgPool2d),
            ):
                if isinstance(module, types):
                    return kind
            if isinstance(module, nn.Sequential) and not len(module):
                return "same"
            raise ValueError(f"{node.target}, {type(module).__name__}, has no native step")
        if node.op in ("call_function", "call_method"):
            for kind, targets in (("relu", RELU), ("add", ADD), ("flatten", FLATTEN)):
                if node.target in targets:
                    return kind
            raise ValueError(f"{node.target} has no native step")
        return node.op

    def _relu_after(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        if len(users) == 1 and users[0].op != "output" and self._kind(users[0]) == "relu":
            return users[0]
        return None

    def _is_folded(self, relu: fx.Node) -> bool:
        parent = self._parent(relu)
        return self._relu_after(parent) is relu and self._kind(parent) in ("product", "add")

    def _is_only_reader(self, node: fx.Node) -> bool:
        """Whether nothing else reads the value that a node reads."""
        source = self._source(node)
        while node is not source:
            node = self._parent(node)
            if len(node.users) > 1:
                return False
        return True

    def _parent(self, node: fx.Node) -> fx.Node:
        parent = node.args[0]
        assert isinstance(parent, fx.Node)
        return parent
