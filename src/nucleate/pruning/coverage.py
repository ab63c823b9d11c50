"""What of a model can be pruned, what is left out, and why: known before anything happens."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from nucleate.probes.tap import unwrap
from nucleate.pruning.layout import Layout
from nucleate.pruning.units import units

Extra = Literal["bias", "norm", "output", "embedding"]
EXTRAS: tuple[Extra, ...] = ("bias", "norm", "output", "embedding")
"""What is left out unless asked for."""

Status = Literal["prunable", "skipped", "tied", "unsupported"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Row:
    """One parameter."""

    name: str
    module: str
    kind: str
    count: int
    status: Status
    why: str = ""


@dataclass(frozen=True)
class Coverage:
    """Every parameter of a model, with the layout of those that can be pruned."""

    rows: tuple[Row, ...]
    layouts: dict[str, Layout]
    output: str | None
    """Module taken for the output layer."""

    @property
    def prunable(self) -> int:
        """Number of prunable weights: what density refers to."""
        return sum(row.count for row in self.rows if row.status == "prunable")

    @property
    def parameters(self) -> int:
        """Number of all parameters, each shared tensor once."""
        return sum(row.count for row in self.rows if row.status != "tied")

    def __str__(self) -> str:
        counts = Counter(row.status for row in self.rows)
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{self.prunable:,} of {self.parameters:,} parameters prunable"
            f" ({', '.join(f'{counts[s]} {s}' for s in ('prunable', 'skipped', 'tied', 'unsupported') if counts[s])})"
        ]
        lines += [f"  {r.name:<{width}}  {r.count:>11,}  {r.status}{f': {r.why}' if r.why else ''}" for r in self.rows]
        return "\n".join(lines)


def coverage(
    model: nn.Module,
    *,
    layers: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None = None,
    include: Sequence[Extra] = (),
) -> Coverage:
    """Which parameters can be pruned, which are skipped, tied or unsupported, and why.

    Weights of `Linear`, `Conv*`, `ConvTranspose*`, `MultiheadAttention`, recurrent layers and of `transformers.Conv1D`
    are prunable. Biases, normalisation, embeddings and the output layer are skipped unless `include` names them. The
    output layer is what `get_output_embeddings()` gives, else the last linear map or convolution in definition order.
    A tensor with several names is one weight, listed as tied under all but its first name, and left out when any of
    its uses is.

    Args:
        model: any module; wrappers (`torch.compile`, `DataParallel`) are looked into.
        layers: limit to modules of these names, globs ("*" crosses dots) or compiled patterns, with all they contain.
        include: any of "bias", "norm", "output", "embedding".

    Raises:
        ValueError: for a pattern that matches nothing (with the nearest names), an unknown `include`, or a model in
            which nothing is prunable.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    >>> print(coverage(net))
    12 of 34 parameters prunable (1 prunable, 5 skipped)
      0.weight           12  prunable
      0.bias              4  skipped: bias
      1.weight            4  skipped: norm
      1.bias              4  skipped: norm
      3.weight            8  skipped: output layer
      3.bias              2  skipped: bias
    """
    for extra in include:
        if extra not in EXTRAS:
            raise ValueError(f"include knows {', '.join(EXTRAS)}, not {extra!r}")
    root = unwrap(model)
    chosen = _chosen(root, layers)
    output = _output(root)
    names: dict[int, list[str]] = {}
    for name, p in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    rows: dict[str, Row] = {}
    layouts: dict[str, Layout] = {}
    for module_name, module in root.named_modules(remove_duplicate=False):
        for own, p in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{module_name}.{own}" if module_name else own
            if name in rows:
                continue
            layout, status, why = _judge(module, own, p, module_name == output, include)
            if status == "prunable" and chosen is not None and module_name not in chosen:
                status, why = "skipped", "not among the layers asked for"
            rows[name] = Row(name, module_name, layout.kind if layout else own, p.numel(), status, why)
            if layout is not None:
                layouts[name] = layout
    final = dict(rows)
    for aliases in names.values():
        if len(aliases) > 1:
            first = aliases[0]
            left_out = next((rows[a] for a in aliases if rows[a].status != "prunable"), None)
            if left_out is not None and rows[first].status == "prunable":
                final[first] = _with(rows[first], left_out.status, f"tied to {left_out.name} ({left_out.why})")
            for alias in aliases[1:]:
                final[alias] = _with(rows[alias], "tied", f"the same tensor as {first}")
            if first in layouts:
                layouts[first] = dataclasses.replace(layouts[first], ties=tuple(aliases[1:]))
    layouts = units(root, layouts)
    kept = {name: layouts[name] for name, row in final.items() if row.status == "prunable"}
    found = Coverage(tuple(final.values()), kept, output)
    if not kept:
        reasons = Counter(row.why for row in found.rows if row.why)
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(4))
        raise ValueError(f"nothing to prune in {type(root).__name__}: {why or 'it has no parameters'}")
    return found


def matching(model: nn.Module, patterns: str | re.Pattern[str] | Sequence[str | re.Pattern[str]]) -> list[str]:
    """Names of the modules that names, globs or compiled patterns select, in the model's order.

    Raises:
        ValueError: if one selects nothing, with the nearest names.

    >>> matching(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "*")
    ['0', '1']
    """
    known = [name for name, _ in unwrap(model).named_modules(remove_duplicate=False) if name]
    wanted = [patterns] if isinstance(patterns, str | re.Pattern) else list(patterns)
    found: set[str] = set()
    for pattern in wanted:
        glob = pattern if isinstance(pattern, re.Pattern) else re.compile(re.escape(pattern).replace(r"\*", ".*"))
        hits = [name for name in known if glob.fullmatch(name)]
        if not hits:
            text = glob.pattern if isinstance(pattern, re.Pattern) else pattern
            near = difflib.get_close_matches(text, known, n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(known[:20])}"
            raise ValueError(f"no layer matches {text!r}; {hint}")
        found.update(hits)
    return [name for name in known if name in found]


def _chosen(root: nn.Module, layers: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None) -> set[str] | None:
    if layers is None:
        return None
    hits = matching(root, layers)
    inside = [name for name, _ in root.named_modules(remove_duplicate=False)]
    return {name for name in inside for hit in hits if name == hit or name.startswith(hit + ".")}


def _with(row: Row, status: Status, why: str) -> Row:
    return Row(row.name, row.module, row.kind, row.count, status, why)


def _judge(
    module: nn.Module, own: str, p: Tensor, is_output: bool, include: Sequence[Extra]
) -> tuple[Layout | None, Status, str]:
    """Layout, status and reason of one parameter of one module."""
    if isinstance(p, UninitializedParameter):
        raise ValueError(f"{type(module).__name__}.{own} is lazy: run the model once before pruning")
    if own.endswith("_orig"):
        return None, "unsupported", "pruned by torch.nn.utils.prune: call its remove() first"
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return None, "unsupported", "parametrised: the weight in use is computed from it"
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        layout = Layout(kind="norm", shape=tuple(p.shape))
        return (layout, "prunable", "") if "norm" in include else (None, "skipped", "norm")
    if "bias" in own:
        layout = Layout(kind="bias", shape=tuple(p.shape))
        return (layout, "prunable", "") if "bias" in include else (None, "skipped", "bias")
    known = _layout(module, own, tuple(p.shape))
    if known is None:
        return None, "unsupported", f"{type(module).__name__} is not a layer whose axes are known"
    if not p.is_floating_point():
        return None, "unsupported", f"{p.dtype} is not floating point"
    if is_output and "output" not in include:
        return known, "skipped", "output layer"
    if known.kind == "embedding" and "embedding" not in include:
        return known, "skipped", "embedding"
    return known, "prunable", ""


def _layout(module: nn.Module, own: str, shape: tuple[int, ...]) -> Layout | None:
    if isinstance(module, nn.Linear) and own == "weight":
        return Layout(kind="linear", shape=shape)
    if isinstance(module, _CONVS) and own == "weight":
        return Layout(kind="conv", shape=shape, groups=module.groups)
    if isinstance(module, _TRANSPOSED) and own == "weight":
        return Layout(kind="conv_transpose", shape=shape, output=1, groups=module.groups)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and own == "weight":
        return Layout(kind="embedding", shape=shape, output=1)
    if isinstance(module, nn.MultiheadAttention) and own in ("in_proj_weight", *(f"{c}_proj_weight" for c in "qkv")):
        return Layout(kind="attention", shape=shape)
    if isinstance(module, nn.RNNBase) and own.startswith("weight_"):
        return Layout(kind="recurrent", shape=shape)
    if is_conv1d(module) and own == "weight":
        return Layout(kind="conv1d", shape=shape, output=1)
    return None


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the transposed linear map of GPT-2 in `transformers`, which need not be installed."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def _output(root: nn.Module) -> str | None:
    """Name of the module that makes the model's output."""
    getter = getattr(root, "get_output_embeddings", None)
    if callable(getter) and (layer := getter()) is not None:
        return next((name for name, m in root.named_modules(remove_duplicate=False) if m is layer), None)
    maps = [name for name, m in root.named_modules() if _is_map(m)]
    # A model of one layer would have nothing left to prune; the layer is what its user means.
    return maps[-1] if len(maps) > 1 else None


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, *_CONVS, *_TRANSPOSED)) or is_conv1d(module)


def parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the names used in scores and masks: each tensor once, without names that wrappers add."""
    yield from unwrap(model).named_parameters()
