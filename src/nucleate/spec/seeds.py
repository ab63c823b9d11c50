"""The seeds of a spec: which numbers they may be."""

from __future__ import annotations

from typing import Any

LARGEST = 2**32 - 1
"""Largest seed: one that every random generator takes, with room for the numbers that studies add to it."""


def check_seeds(spec: Any) -> None:
    """Refuse a spec whose seeds no generator takes, or that asks for none.

    Raises:
        ValueError: with the field, what was given and what it must be.

    >>> from nucleate.spec import CollapseSpec
    >>> check_seeds(CollapseSpec(seed=-1))
    Traceback (most recent call last):
    ValueError: seed must lie in 0..4294967295, not -1
    """
    data = getattr(spec, "data", None)
    several = getattr(spec, "seeds", 1)
    named = [("seed", getattr(spec, "seed", 0)), ("data.seed", getattr(data, "seed", 0))]
    if isinstance(several, tuple):
        named += [("seeds", seed) for seed in several]
    elif several < 1:
        raise ValueError(f"seeds is how many seeds are run, from seed on: at least 1, not {several}")
    for name, seed in named:
        if not 0 <= seed <= LARGEST:
            raise ValueError(f"{name} must lie in 0..{LARGEST}, not {seed}")
