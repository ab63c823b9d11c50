"""Towards a target: which layer gives up weights next, by measured gain in time or bytes for measured loss.

For each method and shape every layer is pruned alone to a few densities, and its loss is measured; then all layers are
pruned to each of these densities and each layer is timed, in the fastest of its forms. From the dense network on, the
layer that gains most for the loss it adds steps down next. The steps make a path; the search bisects it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

DENSITIES = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02)
"""Kept shares of a layer between which a path steps."""

_UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
_KINDS = {"size": ("B", "kB", "MB", "GB"), "time": ("us", "ms", "s"), "speedup": ("",), "loss": ("",)}

Kind = Literal["size", "time", "speedup", "loss"]
Costs = Mapping[str, Mapping[float, float]]
"""Layer -> kept share -> seconds, bytes or loss; under 1.0 the layer as it is."""


@dataclass(frozen=True)
class Target:
    """What is asked for: at most so many bytes, seconds or loss, or at least so many times the speed."""

    kind: Kind
    value: float

    def met(self, reached: Mapping[Kind, float]) -> bool:
        """Whether measured values, by kind, reach it."""
        value = reached[self.kind]
        return value >= self.value if self.kind == "speedup" else value <= self.value


def parse_target(text: str) -> Target:
    """Target from size=200kB, time=1.5ms, speedup=3 or loss=0.01.

    Raises:
        ValueError: for anything else.

    >>> parse_target("time=1.5ms")
    Target(kind='time', value=0.0015)
    """
    match = re.fullmatch(r"(size|time|speedup|loss)=([0-9.]+(?:e-?[0-9]+)?)([A-Za-z]*)", text.strip())
    kind, number, unit = match.groups() if match else ("", "", "")
    try:
        value = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not match or unit not in _KINDS[kind] or not (value > 0 or (kind == "loss" and value == 0)):
        raise ValueError(f"target must be like size=200kB, time=1.5ms, speedup=3 or loss=0.01, not {text!r}")
    return Target(kind, value)  # type: ignore[arg-type]


def path(costs: Costs, losses: Costs, *, floor: float) -> list[dict[str, float]]:
    """Kept shares by layer, from the dense network on, one layer a step down each time: the best gain for its loss.

    Losses of layers are taken to add up. `floor` is the loss that counts as none: what two measurements of one network
    may differ by. A layer steps to the next density that gains something, over those that gain nothing
    (a sparse form that is slower than the dense one).

    >>> costs = {"a": {1.0: 4.0, 0.5: 1.0}, "b": {1.0: 4.0, 0.5: 3.0}}
    >>> losses = {"a": {1.0: 0.0, 0.5: 0.1}, "b": {1.0: 0.0, 0.5: 0.2}}
    >>> path(costs, losses, floor=0.01)[1:]
    [{'a': 0.5, 'b': 1.0}, {'a': 0.5, 'b': 0.5}]
    """
    now = dict.fromkeys(costs, 1.0)
    walked = [dict(now)]
    while True:
        best: tuple[float, str, float] | None = None
        for name, cost in costs.items():
            gains = [d for d, c in cost.items() if d < now[name] and c < cost[now[name]]]
            if not gains:
                continue
            density = max(gains)
            added = max(losses[name][density] - max(losses[name][now[name]], 0.0), 0.0)
            rate = (cost[now[name]] - cost[density]) / (added + floor)
            if best is None or rate > best[0]:
                best = rate, name, density
        if best is None:
            return walked
        now[best[1]] = best[2]
        walked.append(dict(now))


def first_that(holds: Callable[[int], bool], count: int) -> int | None:
    """Smallest index that holds, where all after one that holds do, by bisection; none if even the last does not.

    >>> first_that(lambda i: i >= 5, 9), first_that(lambda i: False, 9)
    (5, None)
    """
    if count == 0 or not holds(count - 1):
        return None
    low, high = -1, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def last_that(holds: Callable[[int], bool], count: int) -> int:
    """Largest index that holds, where all before one that holds do, by bisection; the first, 0, counts as holding.

    >>> last_that(lambda i: i <= 5, 9)
    5
    """
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
