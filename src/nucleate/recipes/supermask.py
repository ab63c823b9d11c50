"""Recipes of the supermask study."""

from __future__ import annotations

from collections.abc import Callable

from nucleate.recipes.named import named
from nucleate.spec import DataSpec, ModelSpec, SupermaskSpec, TrainSpec


def digits_mlp() -> SupermaskSpec:
    """Subset sums of up to 20 candidates, and masks on frozen nets of two hidden layers on the digits; a minute."""
    return SupermaskSpec(
        recipe="digits-mlp",
        data=DataSpec(name="digits"),
        model=ModelSpec(name="mlp", depth=2),
        train=TrainSpec(lr=0.1, weight_decay=1e-4, schedule="cosine", epochs=30, batch_size=64, threads=1),
    )


def mnist_lenet() -> SupermaskSpec:
    """Masks on a frozen LeNet-300-100 on MNIST, half of its weights kept; minutes."""
    return SupermaskSpec(
        recipe="mnist-lenet",
        data=DataSpec(name="mnist"),
        model=ModelSpec(name="lenet", depth=2),
        train=TrainSpec(lr=0.1, weight_decay=1e-4, schedule="cosine", epochs=10, batch_size=128, threads=1),
        candidates=(),
        widths=(300,),
        densities=(0.5,),
    )


RECIPES: dict[str, Callable[[], SupermaskSpec]] = {"digits-mlp": digits_mlp, "mnist-lenet": mnist_lenet}


def recipe(name: str) -> SupermaskSpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("mnist-lenet").widths
    (300,)
    """
    return named(RECIPES, name)
