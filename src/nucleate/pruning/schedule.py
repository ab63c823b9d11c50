"""When: the density wanted at each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from nucleate.pruning.select import check_density

Schedule = Callable[[int], float]
"""Step (0 before the first optimizer step) -> kept share of the prunable weights; it never rises."""


def one_shot(density: float, *, at: int = 0) -> Schedule:
    """Everything at once, at step `at`.

    >>> [one_shot(0.1, at=2)(step) for step in (0, 1, 2, 3)]
    [1.0, 1.0, 0.1, 0.1]
    """
    density = check_density(density)
    return partial(_one_shot, density, at)


def iterative(kept: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """Keep the share `kept` of what remains, `rounds` times, from step `start` on: density kept^k after round k.

    0.8 is the ladder of Frankle & Carbin 2019.

    >>> ladder = iterative(0.5, rounds=2, every=10)
    >>> [ladder(step) for step in (0, 9, 10, 50)]
    [0.5, 0.5, 0.25, 0.25]
    """
    kept = check_density(kept)
    _check(rounds, every)
    return partial(_iterative, kept, rounds, start, every)


def exponential(density: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """density^(k / rounds) after round k: the same share of what remains goes in every round.

    >>> schedule = exponential(0.01, rounds=2, every=5)
    >>> [round(schedule(step), 3) for step in (0, 5)]
    [0.1, 0.01]
    """
    density = check_density(density)
    _check(rounds, every)
    return partial(_exponential, density, rounds, start, every)


def linear(density: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """1 - (1 - density) k / rounds after round k.

    >>> [round(linear(0.4, rounds=2, every=5)(step), 3) for step in (0, 5)]
    [0.7, 0.4]
    """
    density = check_density(density)
    _check(rounds, every)
    return partial(_linear, density, rounds, start, every)


def cubic(density: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """Density + (1 - density) (1 - k / rounds)^3 after k of `rounds` intervals, 1 up to `start`, then held.

    Much goes early, while the network is redundant, little towards the end (Zhu, Gupta 2017).

    >>> ramp = cubic(0.1, rounds=2, every=10)
    >>> [round(ramp(step), 4) for step in (0, 10, 20, 30)]
    [1.0, 0.2125, 0.1, 0.1]
    """
    density = check_density(density)
    _check(rounds, every)
    return partial(_cubic, density, rounds, start, every)


# Functions of the module and not of the call, so that a schedule can be pickled.


def _one_shot(density: float, at: int, step: int) -> float:
    return density if step >= at else 1.0


def _iterative(kept: float, rounds: int, start: int, every: int, step: int) -> float:
    return math.pow(kept, min(rounds, _round(step, start, every)))


def _exponential(density: float, rounds: int, start: int, every: int, step: int) -> float:
    return math.pow(density, min(rounds, _round(step, start, every)) / rounds)


def _linear(density: float, rounds: int, start: int, every: int, step: int) -> float:
    return 1 - (1 - density) * min(rounds, _round(step, start, every)) / rounds


def _cubic(density: float, rounds: int, start: int, every: int, step: int) -> float:
    k = min(rounds, max(0, _round(step, start, every) - 1))
    return density + (1 - density) * (1 - k / rounds) ** 3


def _round(step: int, start: int, every: int) -> int:
    """Pruning events up to and at a step: the first happens at `start`."""
    return 0 if step < start else (step - start) // every + 1


def _check(rounds: int, every: int) -> None:
    if rounds < 1 or every < 1:
        raise ValueError(f"rounds and every must be at least 1, not {rounds} and {every}")
