"""How many weights stay where, and in what shape: scores -> masks with exact counts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from nucleate.pruning import groups
from nucleate.pruning.densities import layer_counts, round_half_up
from nucleate.pruning.layout import Layout
from nucleate.pruning.masks import Masks
from nucleate.pruning.scores import Scores
from nucleate.pruning.threshold import Ranked, finite, keep


def select(
    scores: Mapping[str, Tensor],
    density: float,
    *,
    scope: str | Mapping[str, float | int] = "global",
    shape: str = "weight",
    masks: Mapping[str, Tensor] | None = None,
    allow_empty: bool = False,
) -> Masks:
    """Masks that keep the largest scores: exactly round(density x prunable weights) of them, ties by index.

    Args:
        scores: from `scores`, or any mapping of tensors by name, which serves single weights only.
        density: kept share of all prunable weights, in (0, 1]; entries pruned earlier count as pruned.
        scope: between what scores are compared. "global": all layers; "layer" (also called "uniform"): each layer on
            its own, all at this density; "erk": each on its own, at densities proportional to (sum of the sides) /
            (product of the sides), dense where that exceeds 1 (Evci et al. 2020); "owl": at densities by the share of
            outlying scores (Yin et al. 2024); or a mapping from every parameter to its density or to the number kept.
        shape: what is removed as one. "weight"; "N:M" (as "2:4"): N of every M consecutive inputs stay (all where
            fewer are left), and the density must be N/M; "block:4x1": four neighbouring outputs share an input; "unit"
            or "channel": an output with its bias; "head": an attention head; "layer": all of a tensor. Groups compare
            by the mean score of their weights; units of all layers together keep within the density, by less than one.
        masks: what earlier rounds left, if the scores do not carry it.
        allow_empty: let a layer lose all its weights.

    Raises:
        ValueError: for a density outside (0, 1], an unknown scope or shape, NaN scores, a plain mapping where axes
            matter, or a layer that would keep nothing.

    >>> select({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 2.0])}, 0.5)
    {'a': tensor([1, 0], dtype=torch.uint8), 'b': tensor([1, 0], dtype=torch.uint8)}
    """
    density = check_density(density)
    if not scores:
        raise ValueError("there are no scores to select by")
    earlier = masks if masks is not None else getattr(scores, "masks", None)
    layouts = scores.layout if isinstance(scores, Scores) else {}
    made = scores.made if isinstance(scores, Scores) else scores
    for name, s in scores.items():
        # What is made from weights was looked at when they were taken, an instant ago.
        if made is scores and not finite(s):
            raise ValueError(f"the score of {name!r} holds NaN or infinity")
    if shape != "weight" and not layouts:
        raise ValueError(f"shape={shape!r} needs to know the axes: give the result of nucleate.scores, not a dict")
    if shape == "weight":
        found = _single(scores, made, layouts, density, scope, earlier)
    else:
        found = groups.select(made, layouts, density, scope, shape, earlier)
    if not allow_empty and shape != "layer":
        _refuse_collapse(found, earlier, density, scope)
    return found


def check_density(density: Any) -> float:
    """The kept share as a float.

    Raises:
        ValueError: for what is none.
    """
    if isinstance(density, bool) or not isinstance(density, Real) or not 0 < float(density) <= 1:
        raise ValueError(f"density is the kept share of the weights, in (0, 1], not {density!r}")
    return float(density)


def _single(
    scores: Mapping[str, Tensor],
    made: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    density: float,
    scope: str | Mapping[str, float | int],
    earlier: Mapping[str, Tensor] | None,
) -> Masks:
    for name, layout in layouts.items():
        if name in scores and scores[name].shape != layout.shape:
            raise ValueError(f"{name}: this method scores whole outputs; use shape='unit'")
    by_size = isinstance(scores, Scores) and scores.by_size
    live = earlier or {}
    by_row = [name for name, layout in layouts.items() if layout.ranking == "output"]
    if scope == "global" and not by_row:
        ranked = {name: Ranked(s, live.get(name), by_size) for name, s in scores.items()}
        return Masks(keep(ranked, round_half_up(density * sum(s.numel() for s in scores.values()))))
    counts = layer_counts(made, layouts, density, "layer" if scope == "global" else scope)
    out: dict[str, Tensor] = {}
    for name, s in scores.items():
        if name in by_row:
            out[name] = _by_row(made[name], live.get(name), layouts[name], counts[name])
        else:
            out |= keep({name: Ranked(s, live.get(name), by_size)}, counts[name])
    return Masks(out)


def _by_row(scores: Tensor, left: Tensor | None, layout: Layout, count: int) -> Tensor:
    """Mask that keeps the same number in every output row, up to one: exactly `count` in all."""
    values = layout.rows(scores)
    live = None if left is None else layout.rows(left).bool()
    rows, columns = values.shape
    starts = [row * count // rows for row in range(rows + 1)]
    wanted = torch.tensor([b - a for a, b in itertools.pairwise(starts)], device=values.device)
    mask = torch.zeros(rows, columns, dtype=torch.uint8, device=values.device)
    # Sorting needs an index of 8 bytes an entry: a few rows at a time keep that small.
    step = max(1, (1 << 20) // columns)
    for i in range(0, rows, step):
        part = values[i : i + step]
        if live is not None:
            part = part.masked_fill(~live[i : i + step], -torch.inf)
            short = live[i : i + step].sum(1) < wanted[i : i + step]
            if bool(short.any()):
                raise ValueError("an output row has fewer weights left than it should keep; lower the density")
        order = part.sort(dim=1, descending=True, stable=True).indices
        chosen = torch.arange(columns, device=values.device) < wanted[i : i + step, None]
        mask[i : i + step].scatter_(1, order, chosen.to(torch.uint8))
    return layout.unrows(mask).contiguous()


def _refuse_collapse(
    found: Masks, earlier: Mapping[str, Tensor] | None, density: float, scope: str | Mapping[str, float | int]
) -> None:
    """A layer that loses its last weight cuts the network in two."""
    before = set() if earlier is None else {name for name, mask in earlier.items() if not bool(mask.any())}
    new = [name for name in found.emptied if name not in before]
    if new:
        shown = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        raise ValueError(
            f"density {density} (scope {scope if isinstance(scope, str) else 'given'}) empties {shown}; raise the "
            "density, take scope='layer' or 'erk', or give allow_empty=True"
        )
