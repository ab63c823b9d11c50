"""Recipes of the prune-stability study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes.named import named
from nucleate.spec import DataSpec, ModelSpec, PruneStabilitySpec, TrainSpec


def digits() -> PruneStabilitySpec:
    """A small multi-layer perceptron on 300 of the digits, ten seeds of 43 arms side by side; a minute or two."""
    return PruneStabilitySpec(
        recipe="digits",
        data=DataSpec(name="digits", train_size=540),
        model=ModelSpec(name="mlp", width=64, depth=2),
        train=TrainSpec(
            optimizer="adam", lr=3e-3, weight_decay=0.0, schedule="cosine", epochs=50, batch_size=50, threads=1
        ),
    )


def mnist() -> PruneStabilitySpec:
    """A multi-layer perceptron on 10,000 images of MNIST, five seeds."""
    spec = digits()
    return replace(
        spec,
        recipe="mnist",
        seeds=5,
        data=DataSpec(name="mnist", train_size=11_000),
        model=replace(spec.model, width=128),
        train=replace(spec.train, lr=1e-3, batch_size=100),
        stability=replace(spec.stability, validation=1000),
    )


RECIPES: dict[str, Callable[[], PruneStabilitySpec]] = {"digits": digits, "mnist": mnist}


def recipe(name: str) -> PruneStabilitySpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("digits").stability.targets
    ('small', 'random', 'large')
    """
    return named(RECIPES, name)
