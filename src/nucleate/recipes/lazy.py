"""Recipes of the lazy study."""

from __future__ import annotations

from collections.abc import Callable

from nucleate.recipes.named import named
from nucleate.spec import DataSpec, LazySpec


def digits() -> LazySpec:
    """Widths 16 to 4,096 on 500 digits; eighteen core-seconds a seed."""
    return LazySpec(recipe="digits", steps=1000)


def digits_quick() -> LazySpec:
    """Widths 16 to 1,024 on 200 digits; a second a seed."""
    return LazySpec(recipe="digits-quick", data=DataSpec(train_size=200), widths=(16, 64, 256, 1024), steps=400)


def mnist() -> LazySpec:
    """Widths 16 to 4,096 on 1,000 images of MNIST; minutes."""
    return LazySpec(recipe="mnist", data=DataSpec(name="mnist", train_size=1000, test_size=2000), steps=1000)


RECIPES: dict[str, Callable[[], LazySpec]] = {"digits": digits, "digits-quick": digits_quick, "mnist": mnist}


def recipe(name: str) -> LazySpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("digits").recipe
    'digits'
    """
    return named(RECIPES, name)
