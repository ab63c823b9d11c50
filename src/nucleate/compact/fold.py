"""A model as a graph, with masks applied and batch normalisation folded away."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from nucleate.compact.layers import is_hooked
from nucleate.compact.tracing import Tracer, readers
from nucleate.probes.tap import unwrap


def folded(model: nn.Module) -> fx.GraphModule:
    """A copy of the model in eval mode as a graph, every batch normalisation folded into the layer before it.

    A layer that runs twice, or whose weights are read elsewhere, stays as it is, and so does one with hooks or
    parametrisations.

    Raises:
        ValueError: as `traced`.

    >>> folded(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).eval())
    Sequential(
      (0): Linear(in_features=3, out_features=4, bias=True)
      (2): ReLU()
    )
    """
    graph = traced(model)
    modules = dict(graph.named_modules())
    reads = readers(graph.graph)
    for node in list(graph.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
            continue
        before = node.args[0]
        alone = before.op == "call_module" and len(before.users) == reads[str(before.target)] == 1
        layer = modules[str(before.target)] if alone else None
        if layer is None or is_parametrized(layer) or is_hooked(layer) or is_hooked(norm):
            continue
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        parent, _, name = str(before.target).rpartition(".")
        setattr(graph.get_submodule(parent), name, fused)
        modules[str(before.target)] = fused
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.requires_grad_(False)


def traced(model: nn.Module) -> fx.GraphModule:
    """A copy of the model in eval mode as a graph, in which no value changes.

    Raises:
        ValueError: if the model cannot be traced, because its code depends on its data, or overwrites what a view of it
            still reads; or if it has hooks of its own.
    """
    if is_hooked(model):
        raise ValueError(f"{type(model).__name__} has forward hooks, which a graph of it leaves out")
    try:
        return Tracer().graph_of(copy.deepcopy(model).eval())
    # The user's code runs here, and may raise anything.
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be traced: {type(error).__name__}: {error}") from error


@torch.no_grad()
def masked(model: nn.Module, masks: Mapping[str, Tensor] | None) -> nn.Module:
    """A copy of the model in eval mode, its weights multiplied by their masks.

    Masks have the names that `nu.prune` gives: without those of `torch.compile` or `DataParallel` around the model.

    Raises:
        ValueError: for a mask that fits no parameter, or a model that cannot be copied.
    """
    try:
        out = copy.deepcopy(model).eval()
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({error}): make weights of torch.nn.utils.prune, weight_norm or "
            "spectral_norm plain first, by prune.remove, remove_weight_norm or remove_spectral_norm"
        ) from error
    parameters = {name: p for m in (out, unwrap(out)) for name, p in m.named_parameters(remove_duplicate=False)}
    for name, mask in (masks or {}).items():
        if name not in parameters:
            raise ValueError(f"there is a mask for {name!r}, but no such parameter")
        if mask.shape != parameters[name].shape:
            raise ValueError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, its parameter {tuple(parameters[name].shape)}"
            )
        parameters[name].mul_(mask.to(parameters[name].device))
    return out
