"""What each level's ticket is, with intervals paired over seeds; and the table of a ladder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from nucleate.runs import Run
from nucleate.studies.ladder.arms import TICKET

Interval = tuple[float, float, float]
"""Low, mean, high."""

SHUFFLES = ("layer-shuffle", "random")
"""Controls that keep the layers' densities and lose the positions."""


@dataclass(frozen=True)
class Level:
    """One level of a ladder, over seeds."""

    level: int
    density: float
    weights: int
    seeds: int
    stop: float
    """Mean step of the smallest validation loss; censored ones count as the horizon."""
    accuracy: Interval
    """Test accuracy at that step."""
    gaps: dict[str, Interval] = field(default_factory=dict)
    """Ticket minus "dense" and minus each control, in the same measure."""
    later: dict[str, float] = field(default_factory=dict)
    """Step of the smallest validation loss of each arm over the ticket's, geometric mean."""

    def verdict(self, margin: float) -> str:
        """In words: what the intervals allow to say at a margin in accuracy.

        "ticket": not below dense by the margin, above the re-initialised control and above a mask of the same layer
        densities. "layer ratios only": not below dense, and tied with such a mask. "trainable from any init": not
        below dense, and tied with the re-initialised control. A tie is an interval inside the margin.
        """
        low, _, high = self.gaps["dense"]
        if math.isnan(low):
            return "one seed"
        if high < -margin:
            return "below dense"
        if low <= -margin:
            return "undecided"
        shuffles = [self.gaps[name] for name in SHUFFLES if name in self.gaps]
        fresh = self.gaps.get("reinit")
        if any(-margin < gap[0] and gap[2] < margin for gap in shuffles):
            return "layer ratios only"
        if fresh is not None and -margin < fresh[0] and fresh[2] < margin:
            return "trainable from any init"
        if shuffles and fresh is not None and all(gap[0] > 0 for gap in (*shuffles, fresh)):
            return "ticket"
        return "matching"


def levels(runs: Iterable[Run]) -> list[Level]:
    """All levels of the runs of one recipe, seeds together.

    Raises:
        ValueError: if the runs hold no finished level.
    """
    table: dict[tuple[str, str, int, int], float] = {}
    sizes: dict[int, tuple[float, int]] = {}
    for run in runs:
        for row in run.records:
            if row["metric"] in ("stop_step", "stop_accuracy"):
                table[row["metric"], row["arm"], row["level"], row["seed"]] = float(row["value"])
                if row["arm"] == TICKET:
                    sizes[row["level"]] = float(row["density"]), int(row["weights"])
    if not sizes:
        raise ValueError("these runs hold no finished level of a ladder")
    arms = list(dict.fromkeys(arm for _, arm, _, _ in table))
    found = []
    for level in sorted(sizes):
        seeds = sorted(seed for metric, arm, at, seed in table if (metric, arm, at) == ("stop_step", TICKET, level))

        def over(metric: str, arm: str, at: int, seeds: Sequence[int] = tuple(seeds)) -> np.ndarray[Any, Any] | None:
            values = [table.get((metric, arm, at, seed), math.nan) for seed in seeds]
            return None if np.isnan(values).any() else np.array(values)

        own, stop = over("stop_accuracy", TICKET, level), over("stop_step", TICKET, level)
        assert own is not None and stop is not None
        others = {"dense": (TICKET, 0)} | {arm: (arm, level) for arm in arms if arm != TICKET}
        gaps, later = {}, {}
        for name, (arm, at) in others.items():
            accuracy, step = over("stop_accuracy", arm, at), over("stop_step", arm, at)
            if accuracy is not None and step is not None:
                gaps[name] = interval(own - accuracy)
                later[name] = float(np.exp(np.mean(np.log(np.maximum(step, 1) / np.maximum(stop, 1)))))
        density, weights = sizes[level]
        found.append(Level(level, density, weights, len(seeds), float(stop.mean()), interval(own), gaps, later))
    return found


def interval(values: Sequence[float] | np.ndarray[Any, Any]) -> Interval:
    """Student's 95 % interval of the mean; no bounds for one value.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [-0.484, 2.0, 4.484]
    """
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return math.nan, mean, math.nan
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean - half, mean, mean + half


def ladder_table(runs: Sequence[Run], margin: float) -> str:
    """The ladder for the terminal: a line a level, and what it is."""
    found = levels(runs)
    arms = list(dict.fromkeys(name for level in found for name in level.gaps if name != "dense"))
    head = f"{'level':>5s}{'remaining':>11s}{'weights':>10s}{'accuracy':>18s}{'minimum at':>12s}{'- dense':>9s}"
    lines = [head + "".join(f"{'- ' + arm:>18s}" for arm in arms) + "  verdict"]
    for level in found:
        low, mean, high = level.accuracy
        band = f" +-{100 * (high - low) / 2:.2f}" if math.isfinite(low) else ""
        line = f"{level.level:5d}{100 * level.density:9.2f} %{level.weights:10,d}{f'{100 * mean:.2f}{band} %':>18s}"
        line += f"{level.stop:12.0f}{100 * level.gaps['dense'][1]:+9.2f}"
        for arm in arms:
            gap = level.gaps.get(arm)
            cell = "" if gap is None else f"{100 * gap[1]:+.2f} ({level.later[arm]:.2f}x)"
            line += f"{cell:>18s}"
        lines.append(line + "  " + (level.verdict(margin) if level.level else "dense"))
    lines.append(
        f"{found[0].seeds} seed(s); test accuracy at the step of the smallest validation loss; differences in points, "
        f"(step of the control's minimum over the ticket's); margin {100 * margin:g} points"
    )
    return "\n".join(lines)
