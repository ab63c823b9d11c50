"""Whether two models give the same."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from nucleate.probes.tap import tensors


def differences(got: Any, expected: Any) -> list[tuple[float, float]]:
    """(largest difference, largest expected value) of each tensor in two outputs; infinitely far if it is not there.

    >>> import torch
    >>> differences((torch.ones(2), torch.zeros(1)), (torch.tensor([1.0, 3.0]), torch.zeros(2)))
    [(2.0, 3.0), (inf, 0.0)]
    """
    out = []
    for a, b in zip_longest(tensors(got), tensors(expected)):
        if a is None or b is None or a.shape != b.shape:
            out.append((float("inf"), 0.0 if b is None or not b.numel() else float(b.abs().max())))
            continue
        if not b.numel():
            continue
        # What is infinite or no number in both is the same.
        same = (a == b) | (a.isnan() & b.isnan())
        exact = a.double(), b.double()
        apart = (exact[0] - exact[1]).abs().masked_fill(same, 0)
        out.append((float(apart.max()), float(b.double().abs().nan_to_num(0, 0).max())))
    return out
