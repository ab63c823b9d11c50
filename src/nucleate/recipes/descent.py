"""Recipes of the descent study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes.named import named
from nucleate.spec import DataSpec, DescentSpec, ModelSpec, TrainSpec

ADAM = TrainSpec(optimizer="adam", lr=2e-3, weight_decay=0.0, schedule="constant", epochs=600, batch_size=100)
"""Constant rate, no penalty: what is left of the peak is left by nothing but width."""


def digits_features() -> DescentSpec:
    """Random ReLU features, least squares, 500 digits with 20 % wrong labels; seconds."""
    return DescentSpec(
        recipe="digits-features",
        data=DataSpec(name="digits", train_size=500, label_noise=0.2),
        model=ModelSpec(name="relu-features"),
        widths=(20, 50, 100, 200, 300, 400, 450, 480, 490, 500, 510, 520, 550, 600, 800, 1000, 2000, 3000, 5000),
        ridges=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        validation=400,
    )


def digits_features_clean() -> DescentSpec:
    """The same with the true labels: the second descent goes below the first."""
    spec = digits_features()
    return replace(spec, recipe="digits-features-clean", data=replace(spec.data, label_noise=0.0))


def digits_fourier() -> DescentSpec:
    """Random Fourier features, that is an approximate Gaussian kernel, on the same points."""
    spec = digits_features()
    return replace(spec, recipe="digits-fourier", model=ModelSpec(name="fourier-features"))


def digits_features_samples() -> DescentSpec:
    """500 random features on more and more points: more data hurts up to n = 500."""
    spec = digits_features()
    samples = (50, 100, 150, 200, 300, 400, 450, 480, 500, 520, 550, 600, 700, 800, 900, 1000)
    return replace(spec, recipe="digits-features-samples", widths=(500,), samples=samples)


def digits_features_map() -> DescentSpec:
    """Width x samples of random features, as a heat map: the ridge of error along N = n."""
    spec = digits_features()
    sizes = (50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800)
    return replace(spec, recipe="digits-features-map", widths=sizes, samples=sizes, ridges=(), validation=0)


def digits_tree() -> DescentSpec:
    """Decision trees with more and more leaves, the classical control: one U and no second descent."""
    spec = digits_features()
    return replace(
        spec,
        recipe="digits-tree",
        model=ModelSpec(name="tree"),
        widths=(2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 300),
        ridges=(),
        validation=0,
    )


def mnist_features() -> DescentSpec:
    """Random ReLU features on 2,000 images of MNIST with 10 % wrong labels; minutes."""
    return DescentSpec(
        recipe="mnist-features",
        data=DataSpec(name="mnist", train_size=2000, label_noise=0.1),
        model=ModelSpec(name="relu-features"),
        widths=(100, 200, 500, 1000, 1500, 1800, 1950, 2000, 2050, 2200, 2500, 3000, 5000, 10000),
        ridges=(1e-3, 1e-2, 1e-1, 1.0),
        validation=1000,
    )


def digits_mlp() -> DescentSpec:
    """One hidden layer of 2 to 512, Adam, 1,000 digits with 20 % wrong labels; a minute on two cores."""
    return DescentSpec(
        recipe="digits-mlp",
        data=DataSpec(name="digits", train_size=1000, label_noise=0.2),
        model=ModelSpec(name="mlp", depth=1),
        train=ADAM,
        widths=(2, 4, 6, 8, 10, 12, 15, 20, 30, 50, 100, 200, 512),
        validation=300,
        points=12,
    )


def digits_mlp_10() -> DescentSpec:
    """The same with 10 % wrong labels."""
    spec = digits_mlp()
    return replace(spec, recipe="digits-mlp-10", data=replace(spec.data, label_noise=0.1))


def digits_mlp_clean() -> DescentSpec:
    """The same with the true labels: no peak."""
    spec = digits_mlp()
    return replace(spec, recipe="digits-mlp-clean", data=replace(spec.data, label_noise=0.0))


def digits_mlp_noise() -> DescentSpec:
    """Width x label noise of the same network, as heat maps; minutes."""
    spec = digits_mlp()
    widths = (2, 4, 8, 12, 16, 24, 32, 64, 128, 256)
    return replace(
        spec, recipe="digits-mlp-noise", widths=widths, noises=(0.0, 0.1, 0.2, 0.3, 0.4), seeds=(0, 1), validation=0
    )


def digits_mlp_samples() -> DescentSpec:
    """Width x samples of the same network, as heat maps, with the effective model complexity of each width; minutes."""
    spec = digits_mlp()
    widths = (4, 8, 12, 16, 24, 32, 64, 128)
    samples = (100, 200, 400, 600, 800, 1000)
    return replace(spec, recipe="digits-mlp-samples", widths=widths, samples=samples, seeds=(0, 1), validation=0)


def digits_mlp_decay() -> DescentSpec:
    """The same network at three weight decays: the penalty takes the peak away; minutes."""
    spec = digits_mlp()
    return replace(spec, recipe="digits-mlp-decay", decays=(1e-3, 1e-2), seeds=(0, 1))


def digits_sparsity() -> DescentSpec:
    """Digits with 40 % wrong labels, a network pruned to 0.65 % of its weights, beside both controls; two minutes."""
    return DescentSpec(
        recipe="digits-sparsity",
        seeds=tuple(range(10)),
        data=DataSpec(name="digits", train_size=1000, label_noise=0.4),
        model=ModelSpec(name="mlp", depth=1),
        train=replace(ADAM, optimizer="sgd", lr=0.2, epochs=120),
        widths=(200,),
        densities=(0.6, 0.36, 0.22, 0.13, 0.08, 0.05, 0.03, 0.018, 0.011, 0.0065),
        controls=("random", "reinit"),
        epsilon=0.05,
        points=2,
    )


def digits_sparsity_clean() -> DescentSpec:
    """The same with the true labels: no bump."""
    spec = digits_sparsity()
    return replace(spec, recipe="digits-sparsity-clean", data=replace(spec.data, label_noise=0.0))


def digits_audit() -> DescentSpec:
    """Widths x label noise x decay with sharpness, margins and norms of every network, for `nucleate audit`."""
    spec = digits_mlp()
    return replace(
        spec, recipe="digits-audit", data=replace(spec.data, train_size=500), widths=(16, 64, 256),
        noises=(0.0, 0.1, 0.2), decays=(1e-3,), seeds=(0, 1, 2), validation=0, landscape=True,
    )  # fmt: skip


def mnist_mlp() -> DescentSpec:
    """One hidden layer on 4,000 images of MNIST with 20 % wrong labels."""
    return DescentSpec(
        recipe="mnist-mlp",
        data=DataSpec(name="mnist", train_size=4000, test_size=5000, label_noise=0.2),
        model=ModelSpec(name="mlp", depth=1),
        train=replace(ADAM, epochs=150, lr=1e-3),
        widths=(2, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256),
        seeds=(0, 1),
        validation=1000,
        points=10,
    )


def fashion_convnet() -> DescentSpec:
    """Six convolutions of growing width on 2,000 images of Fashion-MNIST with 20 % wrong labels; better on a GPU."""
    return DescentSpec(
        recipe="fashion-convnet",
        data=DataSpec(name="fashion", train_size=2000, test_size=5000, label_noise=0.2),
        model=ModelSpec(name="convnet", depth=6, batchnorm=True),
        train=replace(ADAM, epochs=120, lr=3e-3),
        widths=(1, 2, 3, 4, 5, 6, 8, 12, 16),
        seeds=(0, 1),
        validation=1000,
        points=8,
    )


RECIPES: dict[str, Callable[[], DescentSpec]] = {
    made.__name__.replace("_", "-"): made
    for made in (
        digits_features,
        digits_features_clean,
        digits_fourier,
        digits_features_samples,
        digits_features_map,
        digits_tree,
        mnist_features,
        digits_mlp,
        digits_mlp_10,
        digits_mlp_clean,
        digits_mlp_noise,
        digits_mlp_samples,
        digits_mlp_decay,
        digits_sparsity,
        digits_sparsity_clean,
        digits_audit,
        mnist_mlp,
        fashion_convnet,
    )
}


def recipe(name: str) -> DescentSpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("digits-tree").model.name
    'tree'
    """
    return named(RECIPES, name)
