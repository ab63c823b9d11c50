"""Recipes of the bias study."""

from __future__ import annotations

from collections.abc import Callable

from nucleate.recipes.named import named
from nucleate.spec import BiasSpec, DataSpec


def min_norm() -> BiasSpec:
    """Least squares on random features: from zero, descent ends at the minimum-norm interpolator; seconds."""
    return BiasSpec(recipe="min-norm", problem="min-norm")


def max_margin() -> BiasSpec:
    """Logistic regression on separable points turns to the maximum-margin separator; seconds."""
    return BiasSpec(recipe="max-margin", problem="max-margin")


def edge() -> BiasSpec:
    """Full-batch descent on a small tanh network settles where the sharpness is 2 / rate; seconds."""
    return BiasSpec(recipe="edge", problem="edge", steps=2500, rates=(0.08, 0.12, 0.16))


def edge_1000() -> BiasSpec:
    """The same on 1,000 digits with 100 units and longer, as in the literature; minutes."""
    return BiasSpec(
        recipe="edge-1000",
        problem="edge",
        data=DataSpec(train_size=1000),
        width=100,
        steps=6000,
        rates=(0.05, 0.1, 0.2),
        seeds=(0, 1),
    )


def depth() -> BiasSpec:
    """Matrix completion by one, two and three factors: depth prefers low rank; seconds."""
    return BiasSpec(recipe="depth", problem="depth", steps=5000)


RECIPES: dict[str, Callable[[], BiasSpec]] = {
    "min-norm": min_norm,
    "max-margin": max_margin,
    "edge": edge,
    "edge-1000": edge_1000,
    "depth": depth,
}


def recipe(name: str) -> BiasSpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("edge").recipe
    'edge'
    """
    return named(RECIPES, name)
