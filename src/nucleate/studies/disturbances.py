"""The arms of the prune-stability study: what is pruned or disturbed, how, and at which epochs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from nucleate.spec import StabilitySpec

FACTORS = ("method", "target", "shape", "events")


@dataclass(frozen=True)
class Arm:
    """One way to prune, or to disturb."""

    method: str
    target: str
    shape: str
    events: int
    noise: str = ""
    """Empty, "zero" or "gauss": a control that prunes nothing."""

    @property
    def name(self) -> str:
        """For records and curves.

        >>> Arm("snip", "large", "unit", 4).name
        'snip, large units, 4 events'
        """
        if not self.events:
            return "dense"
        what = {"zero": "zeroed ", "gauss": "moved ", "": ""}[self.noise]
        by = f"{self.method}, " if self.target != "random" else ""
        return f"{by}{what}{self.target} {self.shape}s, {self.events} event{'s' * (self.events > 1)}"


DENSE = Arm("", "", "", 0)


def arms_of(spec: StabilitySpec) -> list[Arm]:
    """All arms: the dense network, every way to prune, the controls.

    >>> len(arms_of(StabilitySpec()))
    43
    """
    pruned = [
        Arm(method, target, shape, events)
        for method, target, shape, events in product(spec.methods, spec.targets, spec.shapes, spec.events)
        if target != "random" or method == spec.methods[0]
    ]
    controls = [
        Arm(spec.methods[0], "random", shape, events, noise)
        for noise, shape, events in product(spec.noise, spec.shapes, spec.events)
    ]
    return [DENSE, *pruned, *controls]


def event_epochs(spec: StabilitySpec, events: int) -> list[int]:
    """Epochs after which an arm prunes: spread evenly from the first to the last.

    >>> event_epochs(StabilitySpec(start=4, end=30), 3), event_epochs(StabilitySpec(end=30), 1)
    ([4, 17, 30], [30])
    """
    if events < 2:
        return [spec.end] * events
    return [round(spec.start + i * (spec.end - spec.start) / (events - 1)) for i in range(events)]
