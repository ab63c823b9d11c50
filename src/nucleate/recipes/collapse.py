"""Recipes of the collapse study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes.named import named
from nucleate.spec import CollapseSpec, DataSpec, MeasureSpec, ModelSpec, TrainSpec


def digits_mlp() -> CollapseSpec:
    """Three hidden layers of 256 on the bundled 8 x 8 digits; about a minute."""
    return CollapseSpec(
        recipe="digits-mlp",
        data=DataSpec(name="digits"),
        model=ModelSpec(name="mlp", width=256, depth=3, batchnorm=True),
        train=TrainSpec(lr=0.1, weight_decay=2e-3, schedule="cosine", epochs=200, batch_size=64, threads=1),
        measure=MeasureSpec(robustness=500),
    )


def mnist_mlp() -> CollapseSpec:
    """Three hidden layers of 256 on MNIST; minutes."""
    # Width 512, rate 0.1 and batch 128 came to zero error at epoch 45: seen on seed 0, which the full tier judges.
    # This form was then chosen on seed 100, where it comes at epoch 13 of 40.
    return CollapseSpec(
        recipe="mnist-mlp",
        data=DataSpec(name="mnist"),
        model=ModelSpec(name="mlp", width=256, depth=3, batchnorm=True),
        train=TrainSpec(lr=0.02, weight_decay=5e-4, schedule="cosine", epochs=40, batch_size=256),
        measure=MeasureSpec(robustness=500),
    )


def fashion_mlp() -> CollapseSpec:
    """Three hidden layers of 1,024 on Fashion-MNIST; minutes."""
    return CollapseSpec(
        recipe="fashion-mlp",
        data=DataSpec(name="fashion"),
        model=ModelSpec(name="mlp", width=1024, depth=3, batchnorm=True),
        train=TrainSpec(lr=0.1, weight_decay=5e-4, schedule="cosine", epochs=80, batch_size=128),
    )


def fashion_convnet() -> CollapseSpec:
    """Four convolutions on 2,000 images of Fashion-MNIST; minutes on two cores."""
    # With 5,000 images, rate 0.02 and 60 epochs the error stayed at 0.0006 (seed 100); with these 2,000 it is zero at
    # epoch 42 (seed 101).
    return CollapseSpec(
        recipe="fashion-convnet",
        data=DataSpec(name="fashion", train_size=2000, test_size=2000),
        model=ModelSpec(name="convnet", width=24, depth=4, batchnorm=True),
        train=TrainSpec(lr=0.05, weight_decay=5e-4, schedule="cosine", epochs=80, batch_size=64),
        measure=MeasureSpec(points=12),
    )


def cifar_resnet() -> CollapseSpec:
    """A ResNet on CIFAR-10; a GPU, or patience."""
    return CollapseSpec(
        recipe="cifar-resnet",
        data=DataSpec(name="cifar10"),
        model=ModelSpec(name="resnet", width=32, depth=2, batchnorm=True),
        train=TrainSpec(lr=0.1, weight_decay=5e-4, schedule="cosine", epochs=150, batch_size=128),
        measure=MeasureSpec(points=12),
    )


def _squared(recipe: Callable[[], CollapseSpec], lr: float) -> Callable[[], CollapseSpec]:
    def with_squared_loss() -> CollapseSpec:
        spec = recipe()
        return replace(spec, recipe=f"{spec.recipe}-mse", train=replace(spec.train, loss="mse", lr=lr))

    with_squared_loss.__doc__ = f"{(recipe.__doc__ or '').rstrip('.')}; squared loss."
    return with_squared_loss


RECIPES: dict[str, Callable[[], CollapseSpec]] = {
    "digits-mlp": digits_mlp,
    "digits-mlp-mse": _squared(digits_mlp, 0.1),
    "mnist-mlp": mnist_mlp,
    "mnist-mlp-mse": _squared(mnist_mlp, 0.1),
    "fashion-mlp": fashion_mlp,
    "fashion-mlp-mse": _squared(fashion_mlp, 0.1),
    "fashion-convnet": fashion_convnet,
    "fashion-convnet-mse": _squared(fashion_convnet, 0.1),
    "cifar-resnet": cifar_resnet,
    "cifar-resnet-mse": _squared(cifar_resnet, 0.1),
}


def recipe(name: str) -> CollapseSpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("digits-mlp").model.depth
    3
    """
    return named(RECIPES, name)
