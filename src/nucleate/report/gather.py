"""Runs, read once, as the figures need them: series of records, groups of seeds, frames of tensors."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import stdtrit

from nucleate.runs import Run

Key = tuple[str, str, str]
"""Metric, layer, split."""

BAND_SEEDS = 3
"""Fewer seeds have no band: Student's interval of two reaches 12.7 standard errors to each side."""


@dataclass
class Series:
    """One measure over epochs, as recorded; what a record does not state is nan."""

    epochs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    chance: list[float] = field(default_factory=list)

    def at(self, epoch: int | None) -> float:
        """Value at an epoch; nan if it was not measured then."""
        return self.values[self.epochs.index(epoch)] if epoch in self.epochs else math.nan


@dataclass
class View:
    """What the report knows of one run."""

    run: Run
    spec: dict[str, Any]
    env: dict[str, Any]
    done: bool
    series: dict[Key, Series]
    reasons: dict[Key, str]
    frames: list[int]
    """Epochs whose tensors were stored."""
    label: str = ""
    group: str = ""

    @property
    def seed(self) -> Any:
        """Seed of the run, or an empty string."""
        return self.spec.get("seed", "")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All records, read once."""
        return self.run.records

    def rows_of(self, metric: str) -> list[dict[str, Any]]:
        """Records of a measure."""
        return self._by_metric.get(metric, [])

    @cached_property
    def _by_metric(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(str(row.get("metric")), []).append(row)
        return found

    @property
    def study(self) -> str:
        """Study of the run, or an empty string."""
        return str(self.spec.get("study", ""))

    @property
    def zero(self) -> int | None:
        """First epoch of zero training error, if it was reached."""
        zero = self.env.get("zero_error_epoch", -1)
        return int(zero) if isinstance(zero, int) and zero >= 0 else None

    @property
    def end(self) -> int | None:
        """Last epoch with a whole measurement."""
        measured = [s.epochs[-1] for (_, layer, _), s in self.series.items() if layer and s.epochs]
        return max(measured or [s.epochs[-1] for s in self.series.values() if s.epochs], default=None)

    @property
    def layers(self) -> list[str]:
        """Layers in depth order; by first appearance where the run does not say."""
        named = [str(name) for name in self.env.get("layers", [])]
        return named + [name for name in dict.fromkeys(k[1] for k in self.series if k[1]) if name not in named]

    def class_name(self, label: int) -> str:
        """Name of a class; untrusted text."""
        names = self.env.get("class_names") or []
        return str(names[label]) if label < len(names) else str(label)

    def frame(self, epoch: int) -> dict[str, np.ndarray[Any, Any]]:
        """Tensors of an epoch."""
        return self.run.tensors(f"epoch-{epoch:06d}")

    def moments(self) -> list[tuple[str, int]]:
        """The stored epochs that every figure names: start, zero error, end."""
        if not self.frames:
            return []
        named = [("start", self.frames[0])]
        if self.zero in self.frames and self.zero != self.frames[0]:
            named.append(("zero error", int(self.zero or 0)))
        if self.frames[-1] not in {e for _, e in named}:
            named.append(("end" if self.done else "last so far", self.frames[-1]))
        return named

    def why_not_drawn(self, source: str) -> str:
        """Reason why the points of a source are not there to draw."""
        if source == "etf" and ("gnc2_optimum", "penultimate", "train") in self.series:
            return "there are more classes than d + 1, and no simplex of so many vertices exists in d dimensions"
        return f"the run stored no tensor {source}"

    def why(self, key: Key) -> str:
        """Reason why a series is not there."""
        if key in self.reasons:
            return self.reasons[key]
        metric, layer, split = key
        place = f" at layer {layer!r}" if layer else ""
        return f"the run holds no {split} record of {metric!r}{place}"


def view(run: Run) -> View:
    """Read a run: every file of it once."""
    spec = run.spec
    series: dict[Key, Series] = defaultdict(Series)
    reasons: dict[Key, str] = {}
    first: dict[str, tuple[Any, Any]] = {}
    for row in sorted(run.records, key=_epoch):
        variant = (row.get("k"), row.get("convention"))
        usual = first.setdefault(row["metric"], variant)
        told = "" if variant == usual else "@" + ",".join(str(v) for v in variant if v is not None)
        key = (row["metric"] + told, row.get("layer", ""), row.get("split", ""))
        if row.get("reason") and not math.isfinite(row["value"]):
            reasons[key] = str(row["reason"])
        found = series[key]
        if found.epochs and found.epochs[-1] == _epoch(row):
            continue
        found.epochs.append(_epoch(row))
        found.values.append(float(row["value"]))
        for name in ("low", "high", "chance"):
            getattr(found, name).append(_number(row.get(name)))
    for (metric, layer, split), chance in list(series.items()):
        if metric.endswith("_chance") and (owner := series.get((metric.removesuffix("_chance"), layer, split))):
            by_epoch = dict(zip(chance.epochs, chance.values, strict=True))
            owner.chance = [by_epoch.get(e, math.nan) for e in owner.epochs]
    filled = {k: s for k, s in series.items() if any(map(math.isfinite, s.values))}
    frames = sorted(int(n[6:]) for n in run.tensor_names if n.startswith("epoch-") and n[6:].isdigit())
    return View(run, spec, run.env, run.done, filled, reasons, frames)


def views(runs: Iterable[Run]) -> list[View]:
    """Read runs, give each a label, and put seeds of one spec into one group.

    Raises:
        ValueError: if there is no run.
    """
    found = [view(run) for run in {run.path.resolve(): run for run in runs}.values()]
    if not found:
        raise ValueError("there is no run to report on: name at least one run folder")
    keys: list[str] = []
    times: Counter[str] = Counter()
    for v in found:
        rest = {k: x for k, x in v.spec.items() if k != "seed"}
        key = json.dumps([rest, (v.env.get("data") or {}).get("digest")], sort_keys=True, default=str)
        # The same spec and seed twice (other weights, other source) are not two seeds of one experiment.
        times[key + repr(v.seed)] += 1
        keys.append(f"{key}#{times[key + repr(v.seed)]}")
    for v, label in zip(found, _labels(found, keys), strict=True):
        v.group = label
        v.label = f"{label}, {_seeds(v)}" if v.seed != "" else label
    return found


def _seeds(v: View) -> str:
    """Seeds of a run: its own, or the several that it trains side by side."""
    count = v.spec.get("seeds", 1)
    return f"seeds {v.seed} to {v.seed + count - 1}" if isinstance(count, int) and count > 1 else f"seed {v.seed}"


def _labels(found: Sequence[View], keys: Sequence[str]) -> list[str]:
    """Recipe, and the fields that tell groups of one recipe apart."""
    flat = [dict(_flatten({k: x for k, x in v.spec.items() if k not in ("seed", "recipe")})) for v in found]
    labels = []
    for v, own, key in zip(found, flat, keys, strict=True):
        name = str(v.spec.get("recipe") or v.run.path.name)
        rivals = [
            f
            for w, f, k in zip(found, flat, keys, strict=True)
            if k != key and w.spec.get("recipe") == name and w.study == v.study
        ]
        told = [
            f"{field.rsplit('.', 1)[-1]} {value}"
            for field, value in own.items()
            if any(r.get(field) != value for r in rivals)
        ]
        labels.append(", ".join([name, *told]))
    by_label: dict[str, set[str]] = defaultdict(set)
    for label, key in zip(labels, keys, strict=True):
        by_label[label].add(key)
    return [
        f"{label} ({v.run.path.name[-12:]})" if len(by_label[label]) > 1 else label
        for v, label in zip(found, labels, strict=True)
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value) if isinstance(value, list) else value


@dataclass
class Band:
    """Mean over seeds with its 95 % interval, epoch by epoch; the interval is nan for fewer than `BAND_SEEDS`."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def groups(found: Sequence[View]) -> dict[str, list[View]]:
    """Label -> the seeds of one spec, in order of appearance."""
    out: dict[str, list[View]] = {}
    for v in found:
        out.setdefault(v.group, []).append(v)
    return out


def band(members: Sequence[View], key: Key, *, log: bool = False) -> Band | None:
    """A measure over the seeds of a group; none if no seed has it.

    Only epochs that all finished seeds measured are kept, so that a mean never changes because a seed comes or goes.
    With `log`, mean and interval are those of the logarithm, where all values are above zero.
    """
    have = [v for v in members if key in v.series]
    if not have:
        return None
    sure = [v for v in have if v.done] or have
    shared = set.intersection(*(set(v.series[key].epochs) for v in sure))
    out = Band([], [], [], [], len(have))
    for epoch in sorted(shared):
        low, mean, high = banded([v.series[key].at(epoch) for v in have], log=log)
        out.epochs.append(epoch)
        out.mean.append(mean)
        out.low.append(low)
        out.high.append(high)
    return out


def interval(values: Sequence[float], *, log: bool = False) -> tuple[float, float, float]:
    """Low, mean, high: Student's t at 95 % over the finite values.

    >>> [round(v, 3) for v in interval([1.0, 2.0, 3.0])]
    [-0.484, 2.0, 4.484]
    """
    x = np.array([v for v in values if math.isfinite(v)])
    if not len(x):
        return math.nan, math.nan, math.nan
    log = log and bool((x > 0).all())
    x = np.log(x) if log else x
    mean = float(x.mean())
    half = float(stdtrit(len(x) - 1, 0.975)) * float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    low, mid, high = mean - half, mean, mean + half
    return (math.exp(low), math.exp(mid), math.exp(high)) if log else (low, mid, high)


def banded(values: Sequence[float], *, log: bool = False) -> tuple[float, float, float]:
    """Low, mean, high as a curve shows them: of fewer than `BAND_SEEDS` finite values the mean alone.

    >>> banded([1.0, 3.0])
    (nan, 2.0, nan)
    """
    low, mean, high = interval(values, log=log)
    enough = sum(map(math.isfinite, values)) >= BAND_SEEDS
    return (low, mean, high) if enough else (math.nan, mean, math.nan)


def seeds_told(counts: Iterable[int]) -> str:
    """What curves over so many seeds show, in words.

    >>> seeds_told([1, 1]), seeds_told([2])
    ('n = 1 seed', 'mean of n = 2 seeds, too few for an interval')
    >>> seeds_told([5]), seeds_told([2, 5])
    ('mean and 95 % interval of n = 5 seeds', 'mean and, from n = 3 on, 95 % interval of n = 2 to 5 seeds')
    """
    n = sorted(counts)
    few, many = n[0], n[-1]
    span = f"n = {few}" + (f" to {many}" if many > few else "")
    if many == 1:
        return f"{span} seed"
    if many < BAND_SEEDS:
        return f"mean of {span} seeds, too few for an interval"
    since = f", from n = {BAND_SEEDS} on," if few < BAND_SEEDS else ""
    return f"mean and{since} 95 % interval of {span} seeds"


def _epoch(row: dict[str, Any]) -> int:
    """Epoch of a record; 0 for one network that was probed and not trained."""
    return int(row.get("epoch") or 0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
