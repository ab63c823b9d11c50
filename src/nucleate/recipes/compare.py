"""Recipes of the comparison of pruning methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes.named import named
from nucleate.spec import CompareSpec, DataSpec, ModelSpec, PruneSpec, TrainSpec

METHODS = ("dense", "random", "magnitude", "lamp", "snip", "taylor", "fisher", "wanda", "synflow")
"""Methods that a comparison shows unless told otherwise; dense is the control that prunes nothing."""
LANGUAGE_METHODS = ("dense", "random", "magnitude", "wanda", "sparsegpt", "snip")


def digits_mlp() -> CompareSpec:
    """Two hidden layers of 256 on the bundled digits; a minute for nine methods and three seeds."""
    return CompareSpec(
        recipe="digits-mlp",
        data=DataSpec(name="digits"),
        model=ModelSpec(name="mlp", width=256, depth=2),
        train=TrainSpec(lr=0.1, weight_decay=5e-4, schedule="cosine", epochs=40, batch_size=64, threads=1),
        prune=PruneSpec(epochs=5, lr=0.02),
    )


def mnist_lenet() -> CompareSpec:
    """LeNet-300-100 on MNIST; some twenty minutes for nine methods and three seeds on one core."""
    return CompareSpec(
        recipe="mnist-lenet",
        data=DataSpec(name="mnist"),
        model=ModelSpec(name="lenet", width=300, depth=2),
        train=TrainSpec(lr=0.1, weight_decay=1e-4, schedule="cosine", epochs=12, batch_size=128, threads=1),
        prune=PruneSpec(epochs=3, lr=0.02),
        timing=64,
    )


def fashion_lenet() -> CompareSpec:
    """The same network on Fashion-MNIST."""
    spec = mnist_lenet()
    return replace(spec, recipe="fashion-lenet", data=replace(spec.data, name="fashion"))


def fashion_convnet() -> CompareSpec:
    """Conv-2 of width 8 with batch normalisation, 52,000 weights, on 10,000 images of Fashion-MNIST."""
    return CompareSpec(
        recipe="fashion-convnet",
        data=DataSpec(name="fashion", train_size=10_000),
        model=ModelSpec(name="conv", width=8, depth=2, batchnorm=True),
        train=TrainSpec(lr=0.1, weight_decay=5e-4, schedule="cosine", epochs=12, batch_size=128, threads=1),
        prune=PruneSpec(epochs=2, lr=0.01),
        robustness=100,
        timing=16,
    )


def mnist_convnet() -> CompareSpec:
    """The same network on 10,000 images of MNIST."""
    spec = fashion_convnet()
    return replace(spec, recipe="mnist-convnet", data=replace(spec.data, name="mnist"))


def bytes_transformer() -> CompareSpec:
    """A transformer of bytes on the source text of Python's standard library; no download."""
    return CompareSpec(
        recipe="bytes-transformer",
        data=DataSpec(name="python-source", context=64, train_size=8_000, test_size=500),
        model=ModelSpec(name="transformer", width=96, depth=3),
        train=TrainSpec(
            optimizer="adam", lr=2e-3, weight_decay=0.0, schedule="cosine", epochs=4, batch_size=32, threads=1
        ),
        prune=PruneSpec(method="magnitude", scope="layer", epochs=0, examples=128),
        densities=(0.9, 0.7, 0.5, 0.3, 0.2, 0.1),
        robustness=0,
    )


RECIPES: dict[str, Callable[[], CompareSpec]] = {
    "digits-mlp": digits_mlp,
    "mnist-lenet": mnist_lenet,
    "fashion-lenet": fashion_lenet,
    "fashion-convnet": fashion_convnet,
    "mnist-convnet": mnist_convnet,
    "bytes-transformer": bytes_transformer,
}


def recipe(name: str) -> CompareSpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("digits-mlp").prune.method
    'magnitude'
    """
    return named(RECIPES, name)
