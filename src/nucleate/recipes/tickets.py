"""Recipes of the tickets study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.recipes.named import named
from nucleate.spec import DataSpec, LadderSpec, ModelSpec, TicketsSpec, TrainSpec


def digits_lenet() -> TicketsSpec:
    """A small LeNet on the bundled 8 x 8 digits, ten seeds stacked; about a minute."""
    return TicketsSpec(
        recipe="digits-lenet",
        seeds=10,
        data=DataSpec(name="digits"),
        model=ModelSpec(name="lenet", width=100, depth=2, init="glorot"),
        train=TrainSpec(
            optimizer="adam", lr=5e-3, weight_decay=0.0, schedule="constant", epochs=30, batch_size=60, threads=1
        ),
        ladder=LadderSpec(
            rounds=13,
            validation=240,
            controls=("reinit", "random", "layer-shuffle", "one-shot"),
            control_levels=(3, 7, 9, 11, 13),
        ),
    )


AT_INIT = ("snip", "grasp", "synflow", "magnitude", "random")
"""Scores of the untrained network that "pruning before training" compares."""


def digits_init() -> TicketsSpec:
    """Pruning before training on the digits: SNIP, GraSP, SynFlow, magnitude, random, with both ablations; minutes."""
    spec = digits_lenet()
    ladder = replace(
        spec.ladder, controls=("reinit",), control_levels=(7, 11, 13), at_init=AT_INIT, ablations=True, critical=True
    )
    return replace(spec, recipe="digits-init", ladder=ladder)


def lenet_300_100_init() -> TicketsSpec:
    """Pruning before training on MNIST: LeNet-300-100, five scores of the untrained network, with both ablations."""
    spec = lenet_300_100()
    ladder = replace(spec.ladder, control_levels=(7, 9), at_init=AT_INIT, ablations=True, critical=True)
    return replace(spec, recipe="lenet-300-100-init", ladder=ladder)


def lenet_300_100() -> TicketsSpec:
    """LeNet-300-100 on MNIST as in the paper, shortened to 8,253 iterations; minutes a seed."""
    return TicketsSpec(
        recipe="lenet-300-100",
        data=DataSpec(name="mnist"),
        model=ModelSpec(name="lenet", width=300, depth=2, init="glorot"),
        train=TrainSpec(
            optimizer="adam",
            lr=1.2e-3,
            weight_decay=0.0,
            schedule="constant",
            epochs=9,
            batch_size=60,
            threads=1,
            sparse=True,
        ),
        ladder=LadderSpec(rounds=9, controls=("reinit", "random"), control_levels=(3, 7, 9)),
    )


def lenet_300_100_full() -> TicketsSpec:
    """The same in the paper's length: 50,435 iterations, 22 rounds, controls at six levels; hours."""
    spec = lenet_300_100()
    return replace(
        spec,
        recipe="lenet-300-100-full",
        train=replace(spec.train, epochs=55),
        ladder=replace(
            spec.ladder, rounds=22, controls=("reinit", "random", "one-shot"), control_levels=(3, 7, 9, 12, 16, 20)
        ),
    )


def _conv(depth: int, lr: float, epochs: int, remove: float) -> Callable[[], TicketsSpec]:
    def on_cifar() -> TicketsSpec:
        return TicketsSpec(
            recipe=f"conv-{depth}",
            data=DataSpec(name="cifar10"),
            model=ModelSpec(name="conv", width=64, depth=depth, init="glorot"),
            train=TrainSpec(
                optimizer="adam", lr=lr, weight_decay=0.0, schedule="constant", epochs=epochs, batch_size=60
            ),
            ladder=LadderSpec(
                rounds=20, remove_conv=remove, controls=("reinit", "random"), control_levels=(5, 10, 15, 20)
            ),
        )

    on_cifar.__doc__ = f"Conv-{depth} on CIFAR-10 at the paper's rates; a GPU, or days."
    return on_cifar


def conv_2_short() -> TicketsSpec:
    """Conv-2 on CIFAR-10 at the paper's rates, shortened to 3,750 iterations and 8 levels."""
    spec = _conv(2, 2e-4, 5, 0.1)()
    ladder = replace(spec.ladder, rounds=8, controls=("reinit",), control_levels=(8,))
    return replace(spec, recipe="conv-2-short", train=replace(spec.train, threads=1), ladder=ladder)


RECIPES: dict[str, Callable[[], TicketsSpec]] = {
    "digits-lenet": digits_lenet,
    "digits-init": digits_init,
    "lenet-300-100": lenet_300_100,
    "lenet-300-100-full": lenet_300_100_full,
    "lenet-300-100-init": lenet_300_100_init,
    "conv-2": _conv(2, 2e-4, 27, 0.1),
    "conv-2-short": conv_2_short,
    "conv-4": _conv(4, 3e-4, 34, 0.1),
    "conv-6": _conv(6, 3e-4, 40, 0.15),
}


def recipe(name: str) -> TicketsSpec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> recipe("conv-6").ladder.remove_conv
    0.15
    """
    return named(RECIPES, name)
