"""Recipes of the connectivity study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes import tickets
from nucleate.recipes.named import named
from nucleate.spec import ConnectivitySpec, DataSpec, ModelSpec, TrainSpec


def digits_lenet() -> ConnectivitySpec:
    """The small LeNet of the digits ladder, dense and as a ticket, from its initialisation; seconds."""
    spec = tickets.recipe("digits-lenet")
    return ConnectivitySpec(
        recipe="digits-lenet", data=spec.data, model=spec.model, train=spec.train, ladder=spec.ladder, levels=(0, 7)
    )


def mnist_lenet() -> ConnectivitySpec:
    """LeNet-300-100 on MNIST, dense and at 21 % of its weights, from its initialisation; minutes."""
    spec = tickets.recipe("lenet-300-100")
    return ConnectivitySpec(
        recipe="mnist-lenet", data=spec.data, model=spec.model, train=spec.train, ladder=spec.ladder, levels=(0, 7)
    )


def fashion_convnet() -> ConnectivitySpec:
    """Four convolutions with batch normalisation on Fashion-MNIST, parting at 0 to 1,000 steps; many minutes."""
    return ConnectivitySpec(
        recipe="fashion-convnet",
        data=DataSpec(name="fashion", train_size=10_000),
        model=ModelSpec(name="convnet", width=16, depth=4, batchnorm=True),
        train=TrainSpec(lr=0.1, weight_decay=5e-4, schedule="cosine", epochs=20, batch_size=128),
        steps=(0, 20, 100, 400, 1000),
    )


def fashion_convnet_small() -> ConnectivitySpec:
    """The same with 8 channels on 4,000 images, parting at 0 to 8 epochs."""
    spec = fashion_convnet()
    return replace(
        spec,
        recipe="fashion-convnet-small",
        data=replace(spec.data, train_size=4000, test_size=2000),
        model=replace(spec.model, width=8),
        train=replace(spec.train, epochs=12, threads=1),
        steps=(0, 32, 128, 256),
        points=11,
    )


RECIPES: dict[str, Callable[[], ConnectivitySpec]] = {
    "digits-lenet": digits_lenet,
    "mnist-lenet": mnist_lenet,
    "fashion-convnet": fashion_convnet,
    "fashion-convnet-small": fashion_convnet_small,
}


def recipe(name: str) -> ConnectivitySpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("mnist-lenet").levels
    (0, 7)
    """
    return named(RECIPES, name)
