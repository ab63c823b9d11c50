"""The masks of a ladder: how many weights each level keeps, which ones, and the controls' other choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from nucleate.pruning.coverage import coverage
from nucleate.pruning.densities import round_half_up
from nucleate.pruning.masks import Masks
from nucleate.pruning.scores import scores
from nucleate.pruning.select import select
from nucleate.spec import LadderSpec


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Weights that a ladder prunes: of linear maps and convolutions, the output layer's included; no biases."""
    own = dict(model.named_parameters())
    return {name: own[name].detach() for name in coverage(model, include=("output",)).layouts}


def kept_counts(model: nn.Module, ladder: LadderSpec, level: int) -> dict[str, int]:
    """Weights that each layer keeps at a level: in every round round((1 - share) x remaining), halves up.

    >>> from nucleate.models.mlp import LeNet
    >>> lenet = LeNet(784, 10, width=300)
    >>> [sum(kept_counts(lenet, LadderSpec(), level).values()) for level in range(4)]
    [266200, 213060, 170538, 136511]
    """
    covered = coverage(model, include=("output",))
    counts = {}
    for name, layout in covered.layouts.items():
        conv = layout.kind.startswith("conv") and layout.kind != "conv1d"
        share = ladder.remove_conv if conv else ladder.remove_dense
        if covered.output is not None and name.rpartition(".")[0] == covered.output:
            share = ladder.remove_output
        left = layout.count
        for _ in range(level):
            left = round_half_up((1 - share) * left)
        counts[name] = left
    return counts


def total_count(model: nn.Module, ladder: LadderSpec, level: int) -> int:
    """Weights that a level keeps in all."""
    if ladder.scope == "layer":
        return sum(kept_counts(model, ladder, level).values())
    left = sum(w.numel() for w in prunable(model).values())
    for _ in range(level):
        left = round_half_up((1 - ladder.remove_dense) * left)
    return left


def check_levels(model: nn.Module, ladder: LadderSpec) -> None:
    """Refuse a ladder whose counts alone say that its last level empties a layer.

    Raises:
        ValueError: naming the layers.
    """
    if ladder.scope == "layer":
        counts = kept_counts(model, ladder, ladder.rounds)
    else:
        counts = {"the network": total_count(model, ladder, ladder.rounds)}
    _refuse_empty(ladder.rounds, [name for name, count in counts.items() if not count])


def _refuse_empty(level: int, names: Sequence[str]) -> None:
    if names:
        raise ValueError(
            f"level {level} of the ladder leaves no weight in {', '.join(names)}: climb fewer ladder.rounds, or remove "
            "less in each (ladder.remove_dense, ladder.remove_conv, ladder.remove_output)"
        )


def next_masks(
    model: nn.Module,
    ladder: LadderSpec,
    level: int,
    masks: Masks,
    batches: object,
    seed: int,
    initial: dict[str, Tensor],
) -> Masks:
    """Masks of a level, chosen among the weights that the level before kept, by scores of its trained network.

    Raises:
        ValueError: if they leave nothing of a layer.
    """
    found = scores(
        model,
        ladder.method,
        batches,  # type: ignore[arg-type]
        include=("output",),
        masks=masks,
        initial=initial,
        seed=seed,
    )
    if ladder.scope == "layer":
        chosen = select(found, 1.0, scope=kept_counts(model, ladder, level), allow_empty=True)
    else:
        chosen = select(found, total_count(model, ladder, level) / masks.count, allow_empty=True)
    _refuse_empty(level, chosen.emptied)
    return chosen


def smallest(weights: Mapping[str, Tensor], masks: Masks) -> Masks:
    """As many of every layer, but those smallest in size (ranked anew, ties by index)."""
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return select({name: -weights[name].abs() for name in masks}, 1.0, scope=counts, allow_empty=True)


def largest(weights: Mapping[str, Tensor], masks: Masks) -> Masks:
    """As many of every layer, those largest in size: the one-shot counterpart of a ladder's masks."""
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return select({name: weights[name].abs() for name in masks}, 1.0, scope=counts, allow_empty=True)


def random_masks(masks: Masks, generator: Generator) -> Masks:
    """As many of every layer, drawn uniformly."""
    drawn = {name: torch.rand(mask.shape, generator=generator, dtype=torch.float64) for name, mask in masks.items()}
    return select(drawn, 1.0, scope={name: int(mask.sum()) for name, mask in masks.items()}, allow_empty=True)


def layer_shuffle(masks: Masks, generator: Generator) -> Masks:
    """The entries of every mask permuted within it.

    >>> shuffled = layer_shuffle(Masks({"w": torch.tensor([1, 1, 0, 0, 0, 0])}), Generator().manual_seed(0))
    >>> shuffled.kept, shuffled["w"].tolist()
    (2, [0, 0, 0, 1, 1, 0])
    """
    return Masks({name: _permuted(mask, generator) for name, mask in masks.items()})


def global_shuffle(masks: Masks, generator: Generator) -> Masks:
    """The entries of all masks permuted over all layers: only their number stays."""
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    parts = _permuted(flat, generator).split([mask.numel() for mask in masks.values()])
    return Masks({name: part.view(mask.shape) for (name, mask), part in zip(masks.items(), parts, strict=True)})


def _permuted(mask: Tensor, generator: Generator) -> Tensor:
    return mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view(mask.shape)
