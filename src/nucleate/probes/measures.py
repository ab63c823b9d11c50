"""From what a probe has gathered of the layers to records."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from nucleate.geometry.collapse import from_moments
from nucleate.geometry.conventions import Convention
from nucleate.geometry.depth import effective_depth
from nucleate.geometry.dimension import participation, two_nn
from nucleate.geometry.neighbours import Neighbours, chi, layer_overlap, neighbour_search
from nucleate.geometry.similarity import cka, cka_chance
from nucleate.probes.passes import LayerState

Record = dict[str, Any]

POINTS = ("nc4", "nc4_ties", "ncc_accuracy", "boundary_mean", "boundary_spread")
HEAD = (
    *(f"nc2_{name}_weights" for name in ("equinorm", "equiangle", "max_angle", "etf")),
    *("nc3", "nc3_gram", "nc3_cosine", "nc3_unc", "nc3_subspace", "bias_collapse", "minority_angle"),
    *("nc4", "boundary_mean", "boundary_spread"),
)
"""What only the layer that feeds the classifier has."""
DEPTH_EPS = 0.01
"""Nearest-mean error up to which a layer counts as separated, in the effective depth."""


def layer_records(state: LayerState, split: str, convention: str, rule: Convention, wanted: set[str]) -> list[Record]:
    """Collapse measures of a layer."""
    if not wanted & {"collapse", "points"}:
        return []
    head = state.head
    result = from_moments(
        state.moments,
        weight=None if head is None else head.weight,
        bias=None if head is None else head.bias,
        means=state.judge,
        projection=state.projection,
        convention=rule,
    )
    n = int(result.counts.sum())
    rows = []
    for metric, value in result.asdict().items():
        group = "points" if metric in POINTS else "collapse"
        if metric in ("num_classes", "dim") or group not in wanted or (head is None and metric in HEAD):
            continue
        reason = result.reasons.get(metric)
        if math.isnan(value) and head is not None and head.reason and metric in HEAD:
            reason = head.reason
        if "Projection" in (reason or ""):
            reason = "needs a second pass: give batches that can be read again, or cache="
        if "second_moment=True" in (reason or ""):
            reason = "needs the d x d second moment: call collapse(..., second_moment=True) on the layer's features"
        row = _row(state, split, metric, value, n=n, convention=convention, method=state.method)
        if metric in result.chance:
            row["chance"] = result.chance[metric]
        rows.append({**row, "reason": reason} if reason else row)
        if state.layer.name == "logits" and metric == "nc1_quotient" and "outputs" in wanted:
            rows.append({**rows[-1], "layer": "", "metric": "logit_ratio"})
    return rows


def neighbour_records(states: list[LayerState], labels: Tensor, split: str, k: int, wanted: set[str]) -> list[Record]:
    """Measures on the subsample: neighbours, dimensions, similarity to the last layer."""
    rows: list[Record] = []
    found: list[Neighbours | None] = []
    n = len(labels)
    search = bool(wanted & {"chi", "overlap", "dimension"})
    reach = min(max(k, 2), n - 1)
    for state in states:
        assert state.sample is not None
        near = neighbour_search(state.sample, reach) if search and reach > 0 else None
        if near is not None and wanted & {"chi", "overlap"}:
            found.append(_nearest(near, k) if reach >= k else None)
        x, y = state.sample, labels.to(state.sample.device)
        if "chi" in wanted:
            if reach < k or near is None:
                few = f"k = {k} neighbours need at least {k + 1} points, not {n}"
                rows.append(_row(state, split, "chi", math.nan, n=n, k=k, reason=few))
            else:
                c = chi(x, y, k, found=_nearest(near, k))
                row = _row(state, split, "chi", c.value, n=n, k=k, low=c.low, high=c.high, chance=c.chance)
                rows.append({**row, "ceiling": c.ceiling, "tied": c.tied})
                rows.append(_row(state, split, "chi_chance", c.chance, n=n, k=k))
        if "dimension" in wanted:
            rows.append(_dimension(state, split, near, n))
        if "participation" in wanted:
            p = participation(x)
            row = _row(state, split, "participation_ratio", p.value, n=n, chance=p.chance)
            rows.append({**row, "reason": p.reason} if p.reason else row)
        if "cka" in wanted:
            rows.append(_similarity(state, states[-1], split, n))
    if "overlap" in wanted:
        for state, a, b in zip(states, found, found[1:], strict=False):
            if a is None or b is None:
                continue
            shared = layer_overlap(a, b)
            row = _row(state, split, "overlap_next", shared.value, n=n, k=k, low=shared.low, high=shared.high)
            rows.append({**row, "chance": shared.chance, "tied": shared.tied})
    return rows


def effective_depths(rows: list[Record], split: str) -> list[Record]:
    """The first layer, and the first of those from which on, nearest means err at most 1 %, as indices of layers."""
    errors = [(r["layer"], 1 - r["value"]) for r in rows if r["split"] == split and r["metric"] == "ncc_accuracy"]
    if not errors:
        return []
    depth = effective_depth([min(max(e, 0.0), 1.0) for _, e in errors], eps=DEPTH_EPS)
    out: list[Record] = []
    for metric, index in (("effective_depth", depth.lasting), ("effective_depth_first", depth.first)):
        row = {"layer": "", "split": split, "metric": metric, "value": math.nan, "eps": DEPTH_EPS}
        if index is None:
            out.append({**row, "reason": f"no layer's nearest means err at most {DEPTH_EPS:.0%}"})
        else:
            out.append({**row, "value": float(index), "at": errors[index][0]})
    return out


def _dimension(state: LayerState, split: str, near: Neighbours | None, n: int) -> Record:
    if near is None or n < 3:
        few = f"two neighbours need at least 3 points, not {n}"
        return _row(state, split, "intrinsic_dimension", math.nan, n=n, reason=few)
    assert state.sample is not None
    d = two_nn(state.sample, found=near)
    row = _row(
        state, split, "intrinsic_dimension", d.value, n=n, low=d.value - 2 * d.stderr, high=d.value + 2 * d.stderr
    )
    return {**row, "reason": d.reason} if d.reason else row


def _similarity(state: LayerState, last: LayerState, split: str, n: int) -> Record:
    assert state.sample is not None and last.sample is not None
    if n < 2:
        return _row(state, split, "cka_last", math.nan, n=n, reason="CKA needs at least two points")
    value = cka(state.sample, last.sample.to(state.sample))
    row = _row(state, split, "cka_last", value, n=n, chance=cka_chance(n, state.layer.dim, last.layer.dim))
    return {**row, "reason": "a layer is constant"} if math.isnan(value) else row


def _nearest(found: Neighbours, k: int) -> Neighbours:
    """The first k of more neighbours."""
    if found.indices.shape[1] == k:
        return found
    tied = found.distances[:, k] == found.distances[:, k - 1]
    return Neighbours(found.distances[:, :k], found.indices[:, :k], tied, found.certified, found.prefilters)


def _row(state: LayerState, split: str, metric: str, value: float, **more: Any) -> Record:
    row = {"layer": state.layer.name, "split": split, "metric": metric, "value": value, **more}
    return {**row, "pool": state.layer.pool} if state.layer.pool else row
