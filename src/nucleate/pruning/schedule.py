"""When: the density wanted at each optimizer step."""

from __future__ import annotations

from collections.abc import Callable

from nucleate.pruning.select import check_density

Schedule = Callable[[int], float]
"""Step (0 before the first optimizer step) -> kept share of the prunable weights; it never rises."""


def one_shot(density: float, *, at: int = 0) -> Schedule:
    """Everything at once, at step `at`.

    >>> [one_shot(0.1, at=2)(step) for step in (0, 1, 2, 3)]
    [1.0, 1.0, 0.1, 0.1]
    """
    check_density(density)
    return lambda step: density if step >= at else 1.0


def iterative(kept: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """Keep the share `kept` of what remains, `rounds` times, from step `start` on: density kept^k after round k.

    0.8 is the ladder of Frankle & Carbin 2019.

    >>> ladder = iterative(0.5, rounds=2, every=10)
    >>> [ladder(step) for step in (0, 9, 10, 50)]
    [0.5, 0.5, 0.25, 0.25]
    """
    check_density(kept)
    _check(rounds, every)
    return lambda step: kept ** min(rounds, _round(step, start, every))


def exponential(density: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """density^(k / rounds) after round k: the same share of what remains goes in every round.

    >>> schedule = exponential(0.01, rounds=2, every=5)
    >>> [round(schedule(step), 3) for step in (0, 5)]
    [0.1, 0.01]
    """
    check_density(density)
    _check(rounds, every)
    return lambda step: density ** (min(rounds, _round(step, start, every)) / rounds)


def linear(density: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """1 - (1 - density) k / rounds after round k.

    >>> [round(linear(0.4, rounds=2, every=5)(step), 3) for step in (0, 5)]
    [0.7, 0.4]
    """
    check_density(density)
    _check(rounds, every)
    return lambda step: 1 - (1 - density) * min(rounds, _round(step, start, every)) / rounds


def cubic(density: float, *, rounds: int, every: int, start: int = 0) -> Schedule:
    """Density + (1 - density) (1 - k / rounds)^3 after k of `rounds` intervals, 1 up to `start`, then held.

    Much goes early, while the network is redundant, little towards the end (Zhu, Gupta 2017).

    >>> ramp = cubic(0.1, rounds=2, every=10)
    >>> [round(ramp(step), 4) for step in (0, 10, 20, 30)]
    [1.0, 0.2125, 0.1, 0.1]
    """
    check_density(density)
    _check(rounds, every)

    def at(step: int) -> float:
        k = min(rounds, max(0, _round(step, start, every) - 1))
        return density + (1 - density) * (1 - k / rounds) ** 3

    return at


def _round(step: int, start: int, every: int) -> int:
    """Pruning events up to and at a step: the first happens at `start`."""
    return 0 if step < start else (step - start) // every + 1


def _check(rounds: int, every: int) -> None:
    if rounds < 1 or every < 1:
        raise ValueError(f"rounds and every must be at least 1, not {rounds} and {every}")
