"""Physically remove units and channels that are dead: the same function, in a smaller network of the same classes.

A channel is dead if it is constant, which then is folded into the biases of its readers, or if nobody reads it. Every
channel of every value is an atom; atoms that only go together (both sides of a sum, a channel and its normalisation,
the channels of a group) are one class, which goes as a whole once none of it is read. That is repeated until nothing
more goes: what a removed unit read may be read by nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_map_only

from nucleate.compact.fold import masked
from nucleate.compact.heads import FewerHeads, leave_nested_tensors, without_dead_heads
from nucleate.compact.layers import is_activation, is_transposed
from nucleate.compact.outputs import differences
from nucleate.compact.removal import Shrinker
from nucleate.compact.tracing import Tracer
from nucleate.probes.tap import first_tensor, unwrap

TOLERANCE = 1e-5
"""Largest difference of an output, relative to the largest output, that counts as the same function."""


def shrink(model: nn.Module, masks: Mapping[str, Tensor] | None, example: Any) -> nn.Module:
    """A smaller copy of a pruned model in eval mode with the same outputs: dead units, channels and heads are gone.

    Attention heads go from `nn.MultiheadAttention` (which becomes a `FewerHeads`) and from the attention of GPT-2 and
    Llama, key and value heads with all their queries. Units and channels go through residual sums, concatenation,
    grouped, depthwise and transposed convolutions, batch normalisation, gated products, upsampling and flattening. A
    model that cannot be traced as a whole is shrunk module by module, inputs and outputs kept. A constant that a padded
    or a transposed convolution reads cannot go into a bias, for some places see less of it: all such channels become
    one. Layers with hooks or parametrisations stay whole. An `nn.TransformerEncoder` that lost heads uses no nested
    tensors: with a padding mask its padded positions, which nobody should read, hold other numbers than 0.

    Args:
        model: any module; never changed. The result has its classes, with smaller layers; of a model in `torch.compile`
            or `DataParallel` it is the smaller module inside.
        masks: 0 where a weight is pruned, by parameter name; none: whatever is 0 counts as pruned.
        example: a tensor, a tuple of arguments or a dict of keywords; the result serves all sizes that the model does.

    Raises:
        ValueError: for a mask that fits no parameter; if a tensor of the smaller model's outputs differs by more than
            1e-5 of its largest value (or of 1), or its code counts on the sizes of its layers.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> mask = torch.ones(16, 8); mask[:12] = 0
    >>> small = shrink(net, {"0.weight": mask}, torch.ones(2, 8))
    >>> small[0], small[2]
    (Linear(in_features=8, out_features=4, bias=True), Linear(in_features=4, out_features=4, bias=True))
    """
    out = unwrap(masked(model, masks))
    with torch.no_grad():
        leave_nested_tensors(out)
        expected = _call(out, example)
        first_tensor(expected, "the model")
        out = without_dead_heads(out)
        with _refusing(model):
            parts = list(_traceable(out, example))
        for name, module, inputs in parts:
            Shrinker(name, module, inputs).run()
        with _refusing(model):
            got = _call(out, example)
    if isinstance(out, FewerHeads):
        got, expected = got[0], expected[0]
    for difference, size in differences(got, expected):
        if not difference <= TOLERANCE * max(1.0, size):
            raise ValueError(
                f"shrinking {type(model).__name__} changed its outputs by {difference:.2g}; nothing is returned"
            )
    return out


@contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    try:
        yield
    # The model's own code may count on its sizes, and raise anything.
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run with smaller layers ({error}): its code counts on their sizes; "
            "shrink the part that does not"
        ) from error


def _call(model: nn.Module, example: Any) -> Any:
    # The model may overwrite its input.
    example = tree_map_only(Tensor, Tensor.clone, example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch, and activations and the transposed linear map of `transformers`, are not looked into."""
        return is_transposed(m) or is_activation(m) or super().is_leaf_module(m, module_qualified_name)


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
                graph = _Tracer().graph_of(module)
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
