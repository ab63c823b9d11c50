"""Recipes of the memorise study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes.descent import ADAM
from nucleate.recipes.named import named
from nucleate.spec import DataSpec, MemoriseSpec, ModelSpec


def digits() -> MemoriseSpec:
    """Three hidden layers of 128 on 500 digits, labels drawn at random from 0 to 100 %; two minutes."""
    return MemoriseSpec(
        recipe="digits",
        data=DataSpec(name="digits", train_size=500, noise_kind="random"),
        model=ModelSpec(name="mlp", depth=3),
        train=replace(ADAM, lr=1e-3, epochs=300),
        widths=(128,),
    )


def mnist() -> MemoriseSpec:
    """Three hidden layers of 256 on 4,000 images of MNIST; a quarter of an hour."""
    return MemoriseSpec(
        recipe="mnist",
        data=DataSpec(name="mnist", train_size=4000, test_size=5000, noise_kind="random"),
        model=ModelSpec(name="mlp", depth=3),
        train=replace(ADAM, lr=1e-3, epochs=150),
        seeds=(0, 1),
    )


RECIPES: dict[str, Callable[[], MemoriseSpec]] = {"digits": digits, "mnist": mnist}


def recipe(name: str) -> MemoriseSpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("digits").data.noise_kind
    'random'
    """
    return named(RECIPES, name)
