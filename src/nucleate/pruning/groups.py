"""Selection of whole groups of weights: N:M patterns, blocks, units, heads, layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.pruning.densities import layer_shares, round_half_up
from nucleate.pruning.layout import Layout, Made
from nucleate.pruning.masks import Masks
from nucleate.pruning.threshold import Ranked, keep

_PATTERN = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"block:(\d+)x(\d+)")


def select(
    scores: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    density: float,
    scope: str | Mapping[str, float | int],
    shape: str,
    earlier: Mapping[str, Tensor] | None,
) -> Masks:
    """Masks in one of the grouped shapes; see `nucleate.pruning.select.select`."""
    if earlier is not None:
        whole, left = scores, earlier

        def remaining(name: str) -> Tensor:
            s = whole[name]
            return s * left[name] if name in left and left[name].shape == s.shape else s

        scores = Made(whole, remaining)
    if match := _PATTERN.fullmatch(shape):
        found = _pattern(scores, layouts, density, scope, int(match[1]), int(match[2]), earlier)
    elif match := _BLOCK.fullmatch(shape):
        found = _blocks(scores, layouts, density, scope, int(match[1]), int(match[2]), earlier)
    elif shape in ("unit", "channel", "head", "layer"):
        found = _units(scores, layouts, density, scope, shape, earlier)
    else:
        raise ValueError(
            f"no shape is named {shape!r}; there are weight, N:M (as 2:4), block:RxC (as block:4x1), unit, channel, "
            "head and layer"
        )
    if earlier is not None:
        for name in found:
            if name in earlier:
                found[name] = found[name] * earlier[name]
    return found


def _pattern(
    scores: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    density: float,
    scope: str | Mapping[str, float | int],
    n: int,
    m: int,
    earlier: Mapping[str, Tensor] | None,
) -> Masks:
    """N of every M consecutive inputs of an output, in the order of the flattened kernel."""
    if not 0 < n <= m:
        raise ValueError(f"shape {n}:{m} keeps {n} of every {m}: N must lie in 1..M")
    if abs(density - n / m) > 1e-9:
        raise ValueError(f"shape {n}:{m} keeps {n / m}; density must be that, not {density}")
    if scope not in ("global", "layer", "uniform"):
        raise ValueError(f"shape {n}:{m} fixes the density of every layer; scope cannot be {scope!r}")
    out = {}
    for name, s in scores.items():
        rows = _element_rows(s, layouts[name], name)
        if rows.shape[1] % m:
            raise ValueError(f"{name} has {rows.shape[1]} inputs an output, not a multiple of {m}; limit layers=")
        if earlier is not None and name in earlier:
            # Signed scores: what is gone must not outrank what is there.
            rows = rows.masked_fill(layouts[name].rows(earlier[name]) == 0, -torch.inf)
        windows = rows.reshape(len(rows), -1, m)
        order = windows.sort(dim=2, descending=True, stable=True).indices
        mask = torch.zeros(windows.shape, dtype=torch.uint8, device=s.device).scatter_(2, order[..., :n], 1)
        out[name] = layouts[name].unrows(mask.reshape(rows.shape)).contiguous()
    return Masks(out)


def _blocks(
    scores: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    density: float,
    scope: str | Mapping[str, float | int],
    height: int,
    width: int,
    earlier: Mapping[str, Tensor] | None,
) -> Masks:
    """Blocks of neighbouring outputs x neighbouring inputs, compared by their mean score."""
    if not height or not width:
        raise ValueError(f"a block of {height}x{width} holds no weights")
    means, alive = {}, {}
    for name, s in scores.items():
        means[name] = _tiled(_element_rows(s, layouts[name], name), height, width, name).double().mean((1, 3))
        if earlier is not None and name in earlier:
            alive[name] = _tiled(layouts[name].rows(earlier[name]), height, width, name).amax((1, 3))
    ranked = {name: Ranked(s, alive.get(name)) for name, s in means.items()}
    area = height * width
    if scope == "global":
        kept = keep(ranked, round_half_up(density * sum(s.numel() for s in scores.values()) / area))
    else:
        shares = layer_shares(scores, layouts, density, scope)
        kept = {}
        for name, r in ranked.items():
            kept |= keep({name: r}, round_half_up(shares[name] * r.values.numel()))
    out = {}
    for name, mask in kept.items():
        tiles = mask[:, None, :, None].expand(-1, height, -1, width)
        out[name] = layouts[name].unrows(tiles.reshape(layouts[name].outputs, -1)).contiguous()
    return Masks(out)


@dataclass(frozen=True)
class _Member:
    """How a set of units lies in one tensor: (sections, units, entries, inputs) of rows, or of columns."""

    name: str
    sections: int = 1
    columns: bool = False

    def view(self, rows: Tensor, units: int) -> Tensor:
        """(units, entries) of a tensor in rows."""
        if self.columns:
            return rows.reshape(len(rows), units, -1).transpose(0, 1).reshape(units, -1)
        return rows.reshape(self.sections, units, -1).transpose(0, 1).reshape(units, -1)

    def spread(self, kept: Tensor, layout: Layout) -> Tensor:
        """Mask of the tensor from one value a unit."""
        if self.columns:
            line = kept[:, None].expand(-1, layout.inputs // len(kept)).reshape(1, -1)
            return layout.unrows(line.expand(layout.outputs, -1)).contiguous()
        return layout.unrows(self.line(kept, layout)[:, None].expand(-1, layout.inputs)).contiguous()

    def line(self, kept: Tensor, layout: Layout) -> Tensor:
        """One value an output."""
        return kept[None, :, None].expand(self.sections, -1, layout.outputs // (self.sections * len(kept))).reshape(-1)


@dataclass(frozen=True)
class _Set:
    """Units that are compared, and the tensors in which they lie."""

    units: int
    members: tuple[_Member, ...]


def _units(
    scores: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    density: float,
    scope: str | Mapping[str, float | int],
    shape: str,
    earlier: Mapping[str, Tensor] | None,
) -> Masks:
    """Outputs, heads or whole tensors, compared by the mean score of their weights."""
    sets = _sets(scores, layouts, shape)
    values: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    alive: dict[str, Tensor | None] = {}
    for key, held in sets.items():
        parts = [_values(m, scores[m.name], layouts[m.name], held.units) for m in held.members]
        # One value an output is a mean already; of several tensors each counts by its weights.
        sizes[key] = sum(layouts[m.name].count for m in held.members) // held.units
        weights = [layouts[m.name].count for m in held.members]
        values[key] = sum(p * w for p, w in zip(parts, weights, strict=True)) / sum(weights)  # type: ignore[assignment]
        lives = [
            m.view(layouts[m.name].rows(earlier[m.name]), held.units).amax(1)
            for m in held.members
            if earlier is not None and m.name in earlier
        ]
        alive[key] = torch.stack(lives).amax(0) if lives else None
    kept: dict[str, Tensor] = {}
    if scope == "global":
        kept = _within_budget(values, sizes, alive, density)
    else:
        whole = {m.name: torch.empty(layouts[m.name].shape, device="meta") for s in sets.values() for m in s.members}
        if scope == "owl":
            raise ValueError(f"scope 'owl' counts outlying single weights; with shape={shape!r} give densities")
        shares = layer_shares(whole, layouts, density, scope)
        for key, held in sets.items():
            total = sum(layouts[m.name].count for m in held.members)
            share = sum(shares[m.name] * layouts[m.name].count for m in held.members) / total
            kept |= keep({key: Ranked(values[key], alive[key])}, round_half_up(share * held.units))
    out: dict[str, Tensor] = {}
    coupled: dict[str, Tensor] = {}
    for key, held in sets.items():
        for member in held.members:
            layout = layouts[member.name]
            mask = member.spread(kept[key], layout)
            out[member.name] = mask if member.name not in out else out[member.name] * mask
            if not member.columns:
                coupled |= {c: member.line(kept[key], layout).contiguous() for c in layout.coupled}
    return Masks(out | coupled, coupled=frozenset(coupled))


def _sets(scores: Mapping[str, Tensor], layouts: Mapping[str, Layout], shape: str) -> dict[str, _Set]:
    held = {name: layouts[name] for name in scores if layouts[name].kind not in ("bias", "norm")}
    if shape == "layer":
        return {name: _Set(1, (_Member(name),)) for name in held}
    groups: dict[str, list[_Member]] = {}
    counts: dict[str, int] = {}
    if shape == "head":
        for name, layout in held.items():
            if (heads := layout.heads) is not None:
                sections = 3 if heads.role == "qkv" else 1
                groups.setdefault(heads.group, []).append(_Member(name, sections, columns=heads.role == "o"))
                counts[heads.group] = heads.kv
        if not groups:
            raise ValueError("no attention heads are known in what is scored; shape='unit' takes single outputs")
    else:
        for name, layout in held.items():
            key = layout.unit or name
            groups.setdefault(key, []).append(_Member(name))
            counts[key] = layout.outputs
            if layout.reads is not None and layout.reads in {other.unit for other in held.values()}:
                groups.setdefault(layout.reads, []).append(_Member(name, columns=True))
    return {key: _Set(counts[key], tuple(members)) for key, members in groups.items()}


def _values(member: _Member, s: Tensor, layout: Layout, units: int) -> Tensor:
    """One value a unit: the mean of its entries."""
    if s.shape == layout.shape:
        return member.view(layout.rows(s), units).double().mean(1)
    if member.columns:
        # A value an output says nothing about inputs.
        return torch.zeros(units, dtype=torch.float64, device=s.device)
    return member.view(s[:, None], units).double().mean(1)


def _within_budget(
    values: Mapping[str, Tensor], sizes: Mapping[str, int], alive: Mapping[str, Tensor | None], density: float
) -> dict[str, Tensor]:
    """The longest run of best units whose weights stay within the density; ties in order of name and index."""
    flat = torch.cat(
        [v if (a := alive[key]) is None else v.masked_fill(a == 0, -torch.inf) for key, v in values.items()]
    )
    weights = torch.cat([torch.full((len(v),), sizes[key], dtype=torch.int64) for key, v in values.items()])
    order = flat.sort(descending=True, stable=True).indices.cpu()
    budget = round_half_up(density * int(weights.sum()))
    count = int((weights[order].cumsum(0) <= budget).sum())
    count = min(count, int(torch.isfinite(flat).sum()))
    mask = torch.zeros(len(flat), dtype=torch.uint8)
    mask[order[:count]] = 1
    parts = mask.split([len(v) for v in values.values()])
    return {key: part.to(v.device) for (key, v), part in zip(values.items(), parts, strict=True)}


def _element_rows(s: Tensor, layout: Layout, name: str) -> Tensor:
    if s.shape != layout.shape:
        raise ValueError(f"{name}: this method scores whole outputs; use shape='unit'")
    return layout.rows(s)


def _tiled(rows: Tensor, height: int, width: int, name: str) -> Tensor:
    """(block rows, height, block columns, width)."""
    if rows.shape[0] % height or rows.shape[1] % width:
        raise ValueError(
            f"{name} has {rows.shape[0]} outputs of {rows.shape[1]} inputs, which blocks of {height}x{width} do not "
            "fill; limit layers= to others"
        )
    return rows.reshape(rows.shape[0] // height, height, rows.shape[1] // width, width)
