"""Identical rows: dead units and saturated softmax make thousands; they are searched once and put back by index."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nucleate.geometry import _search


def first_twins(x: Tensor) -> Tensor | None:
    """For each row the first identical row, if some row has more than 64 twins; those would swamp any search."""
    n, d = x.shape
    if n <= 64:
        return None
    key = _hash(x[:, :: max(1, d // 16)])
    _keys, inverse, counts = torch.unique(key, return_inverse=True, return_counts=True)
    if int(counts.max()) <= 64:
        return None
    rows = (counts[inverse] > 1).nonzero()[:, 0]
    _keys, inverse, counts = torch.unique(_hash(x.index_select(0, rows)), return_inverse=True, return_counts=True)
    if int(counts.max()) <= 64:
        return None
    first = torch.full_like(counts, n).scatter_reduce_(0, inverse, rows, "amin")[inverse]
    step = max(1, 2**20 // d)
    same = torch.cat(
        [(x[p] == x[q]).all(1) for p, q in zip(torch.split(rows, step), torch.split(first, step), strict=True)]
    )
    twins = torch.arange(n, device=x.device)
    twins[rows[same]] = first[same]
    return twins


def _hash(x: Tensor) -> Tensor:
    """A 64-bit number for each row that depends on every bit (and takes -0 for 0)."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    weights = torch.arange(1, x.shape[1] + 1, device=x.device) * -7046029254386353131
    weights = (weights ^ (weights >> 29)) * -4658895280553007687 | 1
    parts = torch.split(x, max(1, 2**18 // x.shape[1]))
    return torch.cat([((part + 0.0).contiguous().view(whole).long() * weights).sum(1) for part in parts])


def search_unique(x: Tensor, query: Tensor | None, k: int, prefilter: str, twins: Tensor) -> _search.Found:
    """Search among distinct rows, in the order of their first index, and put the twins back."""
    n = len(x)
    firsts, group, sizes = torch.unique(twins, return_inverse=True, return_counts=True)
    members = torch.full((len(firsts), k + 1), -1, dtype=torch.int64, device=x.device)
    order = group.argsort(stable=True)
    rank = torch.arange(n, device=x.device) - (sizes.cumsum(0) - sizes)[group[order]]
    members[group[order][rank <= k], rank[rank <= k]] = order[rank <= k]
    unique = x.index_select(0, firsts)
    near = min(k, len(firsts) - (query is None))
    row = group if query is None else torch.arange(len(query), device=x.device)
    if near:
        found = _search.search(unique, query, near, prefilter)
        distances, groups = found.distances, found.indices
        certified, codes = found.certified[row], found.codes
    else:
        distances, groups = unique.new_empty(1, 0, dtype=torch.float64), firsts.new_empty(1, 0)
        certified, codes = torch.ones(n, dtype=torch.bool, device=x.device), ()
    if query is None:
        own = torch.arange(len(firsts), device=x.device)[:, None]
        distances, groups = torch.cat([distances.new_zeros(len(own), 1), distances], 1), torch.cat([own, groups], 1)
    out_d = distances.new_empty(len(row), k)
    out_i = groups.new_empty(len(row), k)
    step = max(1, 2**22 // (groups.shape[1] * (k + 1)))
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        i = members[groups[row[part]]].flatten(1)
        d = distances[row[part]].repeat_interleave(k + 1, 1)
        absent = i < 0
        if query is None:
            absent |= i == torch.arange(start, start + len(i), device=x.device)[:, None]
        d[absent] = math.inf
        by_index = i.argsort(dim=1)
        d, i = d.gather(1, by_index), i.gather(1, by_index)
        d, by_distance = d.sort(dim=1, stable=True)
        out_d[part], out_i[part] = d[:, :k], i.gather(1, by_distance)[:, :k]
    return _search.Found(out_d, out_i, certified, codes)
