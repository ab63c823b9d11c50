"""The passes of a probe over one split: moments of every layer, then projections on the means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.geometry.conventions import Convention
from nucleate.geometry.moments import Moments
from nucleate.geometry.projection import Projection
from nucleate.probes.outputs import Outputs
from nucleate.probes.points import Batches, DiskCache, MemoryCache, Subsample
from nucleate.probes.pooling import Pool, pool_for, pooled
from nucleate.probes.resolve import Layer, call
from nucleate.probes.tap import first_tensor, listen

Tick = Callable[[], Any]

MARKS = 16
"""Features of each layer by which the points of a second pass are known again."""
SAME = 1e-5
"""How far a class mean may be from its first value, in sizes of a feature."""


@dataclass(frozen=True)
class Head:
    """The classifier (C, d), (C,), or why there is none."""

    weight: Tensor | None
    bias: Tensor | None
    reason: str


class LayerState:
    """What is known of one layer in one split."""

    def __init__(
        self,
        layer: Layer,
        classes: int,
        head: Head | None,
        rule: Convention,
        *,
        method: str,
        means: Tensor | None,
        device: torch.device,
    ) -> None:
        self.layer, self.head, self.rule, self.method = layer, head, rule, method
        self.judge = means
        """Class means that judge the points, if not their own."""
        # MPS has no float64.
        where = "cpu" if device.type == "mps" else device
        self.moments = Moments(classes, layer.dim, second_moment=method == "gram", unit=rule.unit, device=where)
        self.projection: Projection | None = None
        self.cache: MemoryCache | DiskCache | None = None
        self.sample: Tensor | None = None
        self.precise = False
        """Products in float64, for what float32 cannot certify."""
        self.marked = False
        """Whether the points of its second pass are compared with those of the first."""
        self._columns = torch.linspace(0, layer.dim - 1, min(MARKS, layer.dim)).round().long()
        self._marks = self._empty_marks()
        self._again = self._empty_marks()
        self._eps = 0.0

    @property
    def means_of_points(self) -> Tensor:
        return self.moments.means

    def begin_projection(self) -> None:
        """Start the second pass; the moments hold the points' own means by now, unless others judge them."""
        weight, bias = (None, None) if self.head is None else (self.head.weight, self.head.bias)
        self.projection = Projection(
            self.moments, weight=weight, bias=bias, means=self.judge, convention=self.rule, precise=self.precise
        )
        self._again = self._empty_marks()

    def first(self, h: Tensor, labels: Tensor) -> None:
        """Add features to the moments."""
        self.moments.update(h, labels)
        if self.marked:
            self._eps = torch.finfo(h.dtype).eps
            self._marks.update(h[:, self._columns], labels)

    def second(self, h: Tensor, labels: Tensor) -> None:
        """Add features to the projection."""
        assert self.projection is not None
        self.projection.update(h, labels)
        if self.marked:
            self._again.update(h[:, self._columns], labels)

    def check_same_points(self) -> None:
        """Refuse a second pass that saw other features than the first, as random augmentation gives.

        The class sums of a few features must be those of the first pass, in whatever order the points came.

        Raises:
            ValueError: naming the layer.
        """
        if not self.marked:
            return
        first, again = self._marks, self._again
        same = torch.equal(first.count, again.count)
        if same:
            n, used = first.count, first.count > 0
            moved = torch.linalg.vector_norm(again.sum - first.sum, dim=1) / n
            # Batches in another order round differently, and independently.
            digits = (SAME + 2 * self._eps / n.sqrt()) * (first.sumsq / n).sqrt()
            same = bool((moved <= digits)[used].all())
        if not same:
            raise ValueError(
                f"layer {self.layer.name!r}: the second pass saw other points than the first (random augmentation, or "
                'a loader that drops some?); make the batches repeat, or give cache="memory"'
            )

    def _empty_marks(self) -> Moments:
        return Moments(self.moments.num_classes, len(self._columns), device=self.moments.sum.device)


class Split:
    """The points of one split on their way through the model."""

    def __init__(
        self,
        model: nn.Module,
        source: Batches,
        states: list[LayerState],
        outputs: Outputs | None,
        subsample: int,
        seed: int,
        pool: Pool | Any,
        folder: Path | None,
    ) -> None:
        self.model, self.source, self.outputs, self.pool = model, source, outputs, pool
        self.states = {state.layer.tap: state for state in states}
        self.few = Subsample(subsample, seed)
        self._sampled = torch.zeros(subsample, dtype=torch.long)
        self._labels: list[Tensor] = []
        for i, state in enumerate(states):
            if state.method.startswith("cache"):
                state.cache = MemoryCache() if folder is None else DiskCache(folder / f"{i}")
        streaming = [state for state in states if state.method == "project"]
        for state in streaming[:1] + streaming[-1:]:
            state.marked = True

    @property
    def labels(self) -> Tensor:
        """Labels of the subsample, in the order of the points."""
        return self._sampled[self.few.order()]

    def collect(self, tick: Tick, *, project: bool) -> None:
        """First pass: moments, subsample, cache and outputs; with `project` the projections too."""
        if project:
            for state in self._projecting():
                state.begin_projection()
        entering: tuple[Tensor, Tensor] = self.few.enter(0)

        def take(state: LayerState, h: Tensor, labels: Tensor) -> None:
            state.first(h, labels)
            if project and state.projection is not None:
                state.second(h, labels)
            elif state.cache is not None:
                state.cache.add(h)
            rows, slots = (t.to(h.device) for t in entering)
            if self.few.size:
                if state.sample is None:
                    state.sample = h.new_zeros(self.few.size, h.shape[1])
                state.sample[slots] = h[rows]

        def start(labels: Tensor) -> None:
            nonlocal entering
            entering = self.few.enter(len(labels))
            self._sampled[entering[1]] = labels.cpu()[entering[0]]
            if any(state.cache is not None for state in self.states.values()):
                self._labels.append(labels)

        self._run(take, start, tick)
        order = self.few.order()
        for state in self.states.values():
            if state.sample is not None:
                state.sample = state.sample[order.to(state.sample.device)]

    def project(self, tick: Tick) -> None:
        """Second pass, for the layers that need one; again in float64 for those that float32 cannot certify."""
        for state in self._projecting():
            if state.projection is None:
                state.begin_projection()
        pending = [s for s in self._projecting() if s.projection is not None and not float(s.projection.count.sum())]
        while pending or (pending := self._uncertified()):
            for state in (s for s in pending if s.cache is not None):
                assert state.cache is not None and state.projection is not None
                for h, labels in zip(state.cache, self._labels, strict=True):
                    state.second(h, labels)
            streaming = {id(s) for s in pending if s.cache is None}

            def take(state: LayerState, h: Tensor, labels: Tensor, chosen: set[int] = streaming) -> None:
                if id(state) in chosen and state.projection is not None:
                    state.second(h, labels)

            if streaming:
                self._run(take, lambda labels: None, tick, outputs=False)
            for state in pending:
                state.check_same_points()
            pending = []

    def _projecting(self) -> list[LayerState]:
        return [s for s in self.states.values() if s.method == "project" or s.cache is not None]

    def _uncertified(self) -> list[LayerState]:
        found = [s for s in self._projecting() if s.projection is not None and not s.projection.certified]
        found = [s for s in found if self.source.again or s.cache is not None]
        for state in found:
            state.precise = True
            state.begin_projection()
        return found

    def close(self) -> None:
        """Forget the features."""
        for state in self.states.values():
            if isinstance(state.cache, DiskCache):
                state.cache.close()
            state.cache = None

    def _run(
        self,
        take: Callable[[LayerState, Tensor, Tensor], None],
        start: Callable[[Tensor], None],
        tick: Tick,
        *,
        outputs: bool = True,
    ) -> None:
        """Run the model on every batch; each layer's features are handed over while its module runs."""
        labels = torch.empty(0)
        device = self.source.device.type
        points = 0
        took = dict.fromkeys(self.states, 0)

        def receive(key: str, value: Tensor) -> None:
            state = self.states.get(key)
            if state is None:
                return
            # Measures are never taken in the reduced precision of a surrounding or an inner autocast.
            with torch.autocast(device, enabled=False):
                h = pooled(value.detach(), self._pool(state.layer))
                if len(h) != len(labels):
                    raise ValueError(f"layer {state.layer.name!r} gives {len(h)} rows for {len(labels)} points")
                took[key] += len(h)
                take(state, h, labels)

        with listen(self.model, places(self.states), receive, lenient=True):
            for inputs, labels in self.source:
                if not len(labels):
                    continue
                start(labels)
                points += len(labels)
                out = call(self.model, inputs)
                if outputs and self.outputs is not None:
                    with torch.autocast(device, enabled=False):
                        self.outputs.update(first_tensor(out, "logits"), labels)
                tick()
        if not points:
            raise ValueError("there is no point to probe")
        for key, count in took.items():
            if count != points:
                name = self.states[key].layer.name
                raise ValueError(f"layer {name!r} ran on {count} of {points} points; leave it out of layers=")

    def _pool(self, layer: Layer) -> Pool:
        how = pool_for(layer.name, self.pool)
        return "flatten" if layer.name == "input" and how == "auto" else how


def places(taps: Iterable[str]) -> list[str]:
    """Names to listen at: the first run of a module that may run again.

    >>> places(["input", "fc", "act#2"])
    ['input', 'fc#1', 'act#2']
    """
    return [key if "#" in key or key in ("input", "logits") else f"{key}#1" for key in taps]
