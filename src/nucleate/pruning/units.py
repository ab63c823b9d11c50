"""Which weights of a model go together: an output with its bias and norm, attention heads, hidden units of an MLP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from torch import nn

from nucleate.pruning.layout import Heads, Layout

Role = Literal["q", "k", "v", "qkv", "o"]

_ATTENTION: tuple[dict[str, Role], ...] = (
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"},
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"},
    {"c_attn": "qkv", "c_proj": "o"},
    {"self.query": "q", "self.key": "k", "self.value": "v", "output.dense": "o"},
)
"""Names under which Llama, OPT, GPT-2 and BERT keep their attention, and models that follow them."""

_MLPS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("c_fc",), "c_proj"),
    (("fc1",), "fc2"),
    (("linear1",), "linear2"),
    (("intermediate.dense",), "output.dense"),
)
"""Maps that make the hidden units of an MLP, and the one that reads them."""


def units(root: nn.Module, layouts: dict[str, Layout]) -> dict[str, Layout]:
    """The layouts with what goes together filled in."""
    out = dict(layouts)
    norms = norm_after(root)
    own = {name for name, _ in root.named_parameters()}
    for name, layout in layouts.items():
        module, _, last = name.rpartition(".")
        bias = f"{module}.in_proj_bias" if last == "in_proj_weight" else f"{module}.bias" if module else "bias"
        norm = norms.get(module, "")
        coupled = [bias, *((f"{norm}.weight", f"{norm}.bias") if norm else ())]
        if layout.kind not in ("bias", "norm", "embedding", "recurrent"):
            out[name] = dataclasses.replace(layout, coupled=tuple(c for c in coupled if c in own))
    for name, heads in _heads(root):
        if name in out:
            out[name] = dataclasses.replace(out[name], heads=heads)
    for makers, reader, unit in _mlps(root):
        if reader in out and all(maker in out for maker in makers) and all(out[m].heads is None for m in makers):
            for maker in makers:
                out[maker] = dataclasses.replace(out[maker], unit=unit)
            out[reader] = dataclasses.replace(out[reader], reads=unit)
    return out


def norm_after(root: nn.Module) -> dict[str, str]:
    """Batch normalisation defined right after a layer, of as many channels as it has outputs, by the layer's name.

    >>> norm_after(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    {'0': '1'}
    """
    leaves = [(name, m) for name, m in root.named_modules() if not list(m.children())]
    out = {}
    for (name, module), (after, norm) in pairwise(leaves):
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.num_features == width:
            out[name] = after
    return out


def _heads(root: nn.Module) -> Iterator[tuple[str, Heads]]:
    for name, module in root.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is not None:
                heads = Heads(name, "qkv", module.num_heads, module.num_heads, module.head_dim)
                yield f"{prefix}in_proj_weight", heads
                yield f"{prefix}out_proj.weight", dataclasses.replace(heads, role="o")
            continue
        inside = dict(module.named_modules())
        for names in _ATTENTION:
            if not all(part in inside for part in names):
                continue
            count, kv = _head_counts(inside["self"] if "self.query" in names else module)
            if count is None or kv is None:
                continue
            out_of = next(part for part, role in names.items() if role == "o")
            width = _inputs(inside[out_of])
            if width is None or width % count or count % kv:
                continue
            for part, role in names.items():
                yield f"{prefix}{part}.weight", Heads(name, role, count, kv, width // count)
            break


def _head_counts(module: nn.Module) -> tuple[int | None, int | None]:
    """Heads of queries, and of keys and values, as the module or its configuration says."""
    config = getattr(module, "config", None)
    places = (module, config)
    count = next((n for p in places for a in ("num_heads", "num_attention_heads") if (n := _number(p, a))), None)
    kv = next((n for p in places for a in ("num_key_value_heads",) if (n := _number(p, a))), count)
    return count, kv


def _number(place: object, attribute: str) -> int | None:
    value = getattr(place, attribute, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _inputs(module: nn.Module) -> int | None:
    """Inputs of a linear map, either way round."""
    value = getattr(module, "in_features", getattr(module, "nx", None))
    return value if isinstance(value, int) else None


def _mlps(root: nn.Module) -> Iterator[tuple[list[str], str, str]]:
    for name, module in root.named_modules():
        inside = dict(module.named_modules())
        prefix = f"{name}." if name else ""
        for makers, reader in _MLPS:
            if reader in inside and all(maker in inside for maker in makers):
                yield (
                    [f"{prefix}{maker}.weight" for maker in makers],
                    f"{prefix}{reader}.weight",
                    f"{prefix}{makers[0]}",
                )
