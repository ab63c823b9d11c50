"""Selection of whole groups of weights: N:M patterns, blocks, units, heads, layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from nucleate.pruning.layout import Layout
from nucleate.pruning.masks import Masks

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
    raise ValueError(f"no shape is named {shape!r}; there are weight, N:M, block:RxC, unit, channel, head and layer")
