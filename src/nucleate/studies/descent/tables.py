"""A descent run as text for the terminal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from nucleate.runs import Record, Run
from nucleate.studies.descent.trained import EARLY
from nucleate.studies.ladder.verdict import interval

SHOWN = (
    ("train", "error", "train"),
    ("test", "error", "test"),
    ("test", "loss", "loss"),
    ("train", "memorised", "memorised"),
    ("", "norm", "norm"),
    ("test", "churn", "churn"),
    ("test", "bias_squared", "bias^2"),
    ("test", "variance", "variance"),
)
"""Split, metric and heading of the columns: means over seeds at the last epoch."""


def along_width(run: Run) -> str:
    """The table without an antidote, and for all: interpolation threshold, first minimum, peak and end."""
    values: dict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    marks: dict[tuple[Any, Any], float] = {}
    keys: dict[tuple[Any, ...], None] = {}
    for row in run.records:
        if row["metric"] == "threshold":
            marks[row["samples"], row["noise"]] = row["value"]
        if "samples" in row and "width" in row and row["layer"] == "" and row.get("density", 1.0) == 1:
            key = (row["antidote"], row["noise"], row["samples"], row["width"])
            keys.setdefault(key)
            values[(*key, row["split"], row["metric"])][row["seed"]] = row["value"]
    mean = {k: mean_of(v.values()) for k, v in values.items()}
    seeds = len({row["seed"] for row in run.records if "width" in row} - {None})
    lines = []
    for antidote, noise in dict.fromkeys((a, q) for a, q, _, _ in keys):
        own = sorted(k[2:] for k in keys if k[:2] == (antidote, noise))
        told = []
        if antidote == "none":
            told.append(f"{'samples':>8s}{'width':>8s}" + "".join(heading(m, name) for _, m, name in SHOWN))
        for samples, width in own if antidote == "none" else ():
            key = (antidote, noise, samples, width)
            found = ((metric, values.get((*key, split, metric), {}).values()) for split, metric, _ in SHOWN)
            told.append(f"{samples:8d}{width:8d}" + "".join(cell(*f) for f in found))
        for samples in dict.fromkeys(n for n, _ in own):
            errors = {w: mean[antidote, noise, n, w, "test", "error"] for n, w in own if n == samples}
            curve = {w: error for w, error in errors.items() if math.isfinite(error)}
            if len(curve) > 2:
                told.append(_shape(curve, samples, marks.get((samples, noise)) if antidote == "none" else None))
        if told:
            lines += [f"\n{run.spec['recipe']}, antidote {antidote}, label noise {noise:g}{of(seeds)}", *told]
    return "\n".join([*lines, *along_density(run), *lost(run)]).lstrip("\n")


def mean_of(values: Iterable[float]) -> float:
    """Mean over the networks that did not diverge; nan of none.

    >>> mean_of([1.0, math.nan, 3.0]), mean_of([math.nan])
    (2.0, nan)
    """
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def diverged(records: Iterable[Record]) -> tuple[int, int]:
    """Networks whose training error at the end is nan, and all networks."""
    fields = ("seed", "width", "samples", "noise", "antidote", "density", "arm")
    ends: dict[tuple[Any, ...], float] = {}
    for row in records:
        if (row["split"], row["metric"]) == ("train", "error") and row["antidote"] != EARLY:
            ends[tuple(row.get(k) for k in fields)] = row["value"]
    return sum(map(math.isnan, ends.values())), len(ends)


def lost(run: Run) -> list[str]:
    """A line about the networks that diverged; none if none did."""
    count, networks = diverged(run.records)
    told = f"{count} of {networks} networks diverged and are left out: lower the learning rate"
    return [f"{told} ({run.spec['train']['lr']:g})"] if count else []


ALONG = (
    ("train", "error", "train"),
    ("train", "memorised", "memorised"),
    ("test", "pgd_accuracy", "pgd"),
    ("", "distance", "distance"),
    ("train", "nc1", "nc1"),
)
"""Columns along density beside the test error, with its interval: means over seeds at the last epoch."""


def along_density(run: Run) -> Iterator[str]:
    """The ticket and its controls at every density, and where the ticket's curve turns."""
    values: dict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    turns: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for row in run.records:
        where = tuple(row.get(k) for k in ("width", "samples", "noise", "antidote"))
        if row["metric"] == "phase_end":
            turns[where][row["phase"]] = row["value"]
        elif "density" in row and row["seed"] is not None:
            key = (*where, row["arm"], row["density"], row["parameters"])
            values[(*key, row["split"], row["metric"])][row["seed"]] = row["value"]
    keys = dict.fromkeys(key[:-2] for key in values)
    for where in dict.fromkeys(key[:4] for key in keys):
        width, samples, noise, antidote = where
        yield f"\n{run.spec['recipe']}, width {width}, n = {samples}, label noise {noise:g}, antidote {antidote}"
        yield f"{'':8s}{'density':>9s}{'parameters':>12s}{'test':>16s}" + "".join(f"{n:>11s}" for _, _, n in ALONG)
        for key in (key for key in keys if key[:4] == where):
            known = [v for v in values[(*key, "test", "error")].values() if math.isfinite(v)]
            low, mean, high = interval(known or [math.nan])
            band = f" +-{(high - low) / 2:.3f}" if math.isfinite(low) else ""
            line = f"{key[4]:8s}{key[5]:9g}{key[6]:12d}{f'{mean:.3f}{band}':>16s}"
            for split, metric, _ in ALONG:
                value = mean_of(values.get((*key, split, metric), {}).values())
                line += f"{value:11.3g}" if math.isfinite(value) else f"{'-':>11s}"
            yield line
        if where in turns:
            yield _phases(turns[where])


def _phases(turns: dict[str, float]) -> str:
    told = f"like the whole network down to {turns['light']:g}; "
    if math.isnan(turns["peak"]):
        return told + "no bump"
    return told + f"peak at {turns['peak']:g}, sweet spot at {turns['sweet']:g}"


def shape(curve: dict[int, float]) -> tuple[int, int, int]:
    """Sizes of the first minimum, of the peak after it, and the last one.

    The peak is the largest test error after which a lower one follows and before which a lower one stands: the pair
    that rises most from an earlier minimum.

    >>> shape({1: 0.5, 2: 0.2, 4: 0.6, 8: 0.1})
    (2, 4, 8)
    """
    sizes = sorted(curve)
    first, peak, rise = sizes[0], sizes[0], 0.0
    lowest = sizes[0]
    for size in sizes:
        if curve[size] < curve[lowest]:
            lowest = size
        if curve[size] - curve[lowest] > rise:
            first, peak, rise = lowest, size, curve[size] - curve[lowest]
    return first, peak, sizes[-1]


def _shape(curve: dict[int, float], samples: int, threshold: float | None) -> str:
    first, peak, last = shape(curve)
    told = f"n = {samples}: " + (f"threshold at {threshold:g}; " if threshold is not None else "")
    if peak == first:
        return told + f"no peak; {curve[last]:.3g} at {last}"
    told += f"first minimum {curve[first]:.3g} at {first}, peak {curve[peak]:.3g} at {peak}, "
    return told + f"end {curve[last]:.3g} at {last}"


def of(seeds: int) -> str:
    """What the numbers of a table are.

    >>> of(1), of(3)
    ('', ': means of 3 seeds, of an error with its 95 % interval')
    """
    return f": means of {seeds} seeds, of an error with its 95 % interval" if seeds > 1 else ""


def heading(metric: str, name: str) -> str:
    """Above the cells of a metric."""
    return f"{name:>{_room(metric)}s}"


def cell(metric: str, values: Iterable[float]) -> str:
    """Mean of the networks that did not diverge, of an error with Student's interval.

    >>> cell("error", [0.1, 0.2, 0.3]), cell("norm", [1.0, 3.0]), cell("loss", [])
    ('    0.2 +-0.248', '           2', '           -')
    """
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return f"{'-':>{_room(metric)}s}"
    low, mean, high = interval(known)
    band = f" +-{(high - low) / 2:.3f}" if metric == "error" and math.isfinite(low) else ""
    return f"{f'{mean:.4g}{band}':>{_room(metric)}s}"


def _room(metric: str) -> int:
    return 15 if metric == "error" else 12
