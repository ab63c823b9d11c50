"""Exact subset sums: the best approximation of a number by a sum of some of n given ones."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 40
"""Candidates above which half of the sums would no longer fit into memory."""


def subset_sum_error(candidates: Tensor, targets: Tensor) -> Tensor:
    """Smallest |z - sum of a subset| over all 2^n subsets, exactly, for each target; the empty sum counts too.

    Meet in the middle: the 2^(n/2) sums of each half, one of them sorted, and for every sum of the other the two
    neighbours of what is missing (Horowitz, Sahni 1974). float64.

    Args:
        candidates: (..., n), n <= 40.
        targets: (..., T), of the same leading shape.

    Returns:
        (..., T) errors.

    Raises:
        ValueError: for more candidates than can be enumerated, or shapes that do not fit.

    >>> subset_sum_error(torch.tensor([0.5, -0.25, 0.125]), torch.tensor([0.3, 1.0]))
    tensor([0.0500, 0.3750], dtype=torch.float64)
    """
    if candidates.shape[:-1] != targets.shape[:-1]:
        raise ValueError(f"candidates {tuple(candidates.shape)} and targets {tuple(targets.shape)} do not fit")
    n = candidates.shape[-1]
    if n > LIMIT:
        raise ValueError(f"the exact optimum of {n} candidates is out of reach; at most {LIMIT}")
    left, right = _sums(candidates[..., : n // 2]), _sums(candidates[..., n // 2 :]).sort(-1).values
    rows = []
    for t in range(targets.shape[-1]):
        missing = (targets[..., t : t + 1].double() - left).contiguous()
        above = torch.searchsorted(right, missing)
        near = [right.gather(-1, i.clamp(0, right.shape[-1] - 1)) for i in (above - 1, above)]
        rows.append(torch.minimum(*((x - missing).abs() for x in near)).amin(-1))
    return torch.stack(rows, -1)


def best_subset_sum(candidates: Tensor, target: Tensor) -> Tensor:
    """The sums themselves, (...,), of the subsets nearest to one target for each set of candidates (..., n)."""
    n = candidates.shape[-1]
    left, right = _sums(candidates[..., : n // 2]), _sums(candidates[..., n // 2 :]).sort(-1).values
    missing = (target.unsqueeze(-1).double() - left).contiguous()
    above = torch.searchsorted(right, missing)
    near = torch.stack([right.gather(-1, i.clamp(0, right.shape[-1] - 1)) for i in (above - 1, above)])
    sums = (near + left).movedim(0, -1).flatten(-2)
    best = (sums - target.unsqueeze(-1).double()).abs().argmin(-1, keepdim=True)
    return sums.gather(-1, best).squeeze(-1)


def _sums(values: Tensor) -> Tensor:
    """All 2^n sums of subsets, (..., 2^n)."""
    sums = values.new_zeros((*values.shape[:-1], 1), dtype=torch.float64)
    for i in range(values.shape[-1]):
        sums = torch.cat([sums, sums + values[..., i : i + 1].double()], -1)
    return sums
