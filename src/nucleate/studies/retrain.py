"""What happens after pruning: fine-tuning, rewinding the learning rate, rewinding weights and learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from nucleate.machine.tuning import Tuning
from nucleate.pruning.masks import Masks
from nucleate.spec import PruneSpec, TrainSpec
from nucleate.training import Training


def check(how: PruneSpec, train: TrainSpec) -> None:
    """Refuse what is no further training.

    Raises:
        ValueError: with the field and what it must be.
    """
    if how.epochs < 0 or how.examples < 1:
        raise ValueError("prune.epochs must be at least 0 and prune.examples at least 1")
    if how.after not in ("fine-tune", "lr-rewind", "rewind"):
        raise ValueError(f"prune.after must be fine-tune, lr-rewind or rewind, not {how.after!r}")
    if how.after != "fine-tune" and not 1 <= how.epochs <= train.epochs:
        raise ValueError(
            f"prune.after {how.after} repeats the last prune.epochs of the {train.epochs} epochs of train.epochs: "
            f"prune.epochs must be from 1 to {train.epochs}, not {how.epochs}"
        )


def retrain(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    train: TrainSpec,
    how: PruneSpec,
    tuning: Tuning,
    seed: int,
    masks: Masks | None,
    early: Mapping[str, Tensor] | None = None,
) -> None:
    """Train the pruned model for `how.epochs` more, the masks held; momentum starts anew. Nothing for 0 epochs.

    fine-tune: at the constant rate `how.lr`. lr-rewind: the learned weights at the rates, and in the data order, of
    the last epochs of the schedule in `train`. rewind: the same from `early`, the state before those epochs
    (Renda, Frankle, Carbin 2020).

    Raises:
        ValueError: if the loss does not stay finite, or rewind is asked for without `early`.
    """
    if not how.epochs:
        return
    spec = replace(train, epochs=how.epochs, lr=how.lr, schedule="constant") if how.after == "fine-tune" else train
    if how.after == "rewind":
        if early is None:
            raise ValueError("rewind needs the weights of the moment to go back to")
        model.load_state_dict(early)
    training = Training(model, inputs, labels, num_classes, spec, tuning, seed=seed, masks=masks)
    training.epoch, training.started = spec.epochs - how.epochs, True
    for _ in training:
        pass
