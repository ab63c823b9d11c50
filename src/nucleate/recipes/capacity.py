"""Recipes of the capacity study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes import tickets
from nucleate.recipes.named import named
from nucleate.spec import CapacitySpec, DataSpec, LadderSpec, ModelSpec, TrainSpec


def digits_lenet() -> CapacitySpec:
    """A LeNet of 38,000 parameters on the digits, in 10 to 600 directions; half a minute."""
    return CapacitySpec(
        recipe="digits-lenet",
        data=DataSpec(name="digits"),
        model=ModelSpec(name="lenet", width=252, init="glorot"),
        train=TrainSpec(
            optimizer="adam", lr=3e-2, weight_decay=0.0, schedule="cosine", epochs=20, batch_size=64, threads=1
        ),
    )


def mnist_lenet() -> CapacitySpec:
    """LeNet-300-100 on MNIST, in 50 to 3,000 directions; many minutes."""
    return CapacitySpec(
        recipe="mnist-lenet",
        data=DataSpec(name="mnist"),
        model=ModelSpec(name="lenet", width=300, init="glorot"),
        train=TrainSpec(
            optimizer="adam", lr=3e-2, weight_decay=0.0, schedule="cosine", epochs=10, batch_size=128, threads=1
        ),
        dimensions=(50, 150, 300, 750, 1500, 3000),
    )


def digits_parents() -> CapacitySpec:
    """Tickets of 933 weights from LeNets of width 24 to 200 on the digits; a minute and a half a seed."""
    spec = tickets.recipe("digits-lenet")
    return CapacitySpec(
        recipe="digits-parents",
        data=spec.data,
        model=spec.model,
        train=spec.train,
        dimensions=(),
        parents=(24, 50, 100, 200),
        weights=933,
        ladder=LadderSpec(validation=spec.ladder.validation),
    )


def mnist_parents() -> CapacitySpec:
    """Tickets of 35,981 weights from LeNets of width 86, 162 and 300 on MNIST, 2,751 iterations a level."""
    spec = tickets.recipe("lenet-300-100")
    return CapacitySpec(
        recipe="mnist-parents",
        data=spec.data,
        model=spec.model,
        train=replace(spec.train, epochs=3),
        dimensions=(),
        parents=(86, 162, 300),
        weights=35_981,
    )


RECIPES: dict[str, Callable[[], CapacitySpec]] = {
    "digits-lenet": digits_lenet,
    "mnist-lenet": mnist_lenet,
    "digits-parents": digits_parents,
    "mnist-parents": mnist_parents,
}


def recipe(name: str) -> CapacitySpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> max(recipe("digits-lenet").dimensions)
    600
    """
    return named(RECIPES, name)
