"""Further training: fine-tuning, learning-rate rewinding, weight rewinding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nucleate.machine.tuning import Tuning
from nucleate.models import build
from nucleate.pruning.prune import prune
from nucleate.recipes.compare import recipe
from nucleate.spec import ModelSpec, PruneSpec, TrainSpec
from nucleate.studies import compare, dense
from nucleate.studies.retrain import check, retrain
from nucleate.training import Training

TRAIN = TrainSpec(lr=0.1, schedule="cosine", epochs=4, batch_size=16, threads=1)
TUNING = Tuning(threads=1)


def points() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 1, 4, 4, generator=generator), torch.randint(0, 3, (64,), generator=generator)


def net() -> torch.nn.Module:
    return build(ModelSpec(width=16, depth=1), (1, 4, 4), 3, generator=torch.Generator().manual_seed(1))


def trained(epochs: int) -> dict[str, torch.Tensor]:
    model = net()
    run = iter(Training(model, *points(), 3, replace(TRAIN, momentum=0.0), TUNING, seed=5))
    for _ in range(epochs + 1):
        next(run)
    return {k: v.clone() for k, v in model.state_dict().items()}


def after(how: PruneSpec, model: torch.nn.Module, **more: Any) -> dict[str, torch.Tensor]:
    retrain(model, *points(), 3, train=replace(TRAIN, momentum=0.0), how=how, tuning=TUNING, seed=5, masks=None, **more)
    return model.state_dict()


def test_rewinding_without_a_mask_repeats_the_end_of_the_training_bit_by_bit() -> None:
    # Without momentum the state is the weights, so going back two epochs and training on is the same training.
    done = after(PruneSpec(after="rewind", epochs=2), net(), early=trained(2))
    for name, want in trained(4).items():
        assert torch.equal(done[name], want), name


def test_learning_rates_are_rewound_and_weights_are_not() -> None:
    model = net()
    model.load_state_dict(trained(4))
    done = after(PruneSpec(after="lr-rewind", epochs=2), model)
    # The same steps by hand: the last two epochs of the schedule from the final weights.
    other = net()
    other.load_state_dict(trained(4))
    training = Training(other, *points(), 3, replace(TRAIN, momentum=0.0), TUNING, seed=5)
    training.epoch = 2
    rates = []
    for _ in range(2):
        training._run_epoch()
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates == [pytest.approx(0.05), pytest.approx(0.1 * 0.5 * (1 - 2**-0.5))]
    for name, want in other.state_dict().items():
        assert torch.equal(done[name], want), name
    assert any(not torch.equal(done[name], want) for name, want in trained(4).items())


@pytest.mark.parametrize("kind", ["fine-tune", "lr-rewind", "rewind"])
def test_masks_hold_and_kept_weights_move(kind: Any) -> None:
    model = net()
    masks = prune(model, "magnitude", 0.25).masks
    before = {n: w.detach().clone() for n, w in masks.find(model).items()}
    retrain(
        model, *points(), 3, train=TRAIN, how=PruneSpec(after=kind, epochs=1), tuning=TUNING, seed=0, masks=masks,
        early=net().state_dict(),
    )  # fmt: skip
    for name, w in masks.find(model).items():
        assert bool((w[masks[name] == 0] == 0).all())
        assert bool((w != before[name])[masks[name] == 1].any())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (PruneSpec(after="rewind", epochs=0), "from 1 to 4"),
        (PruneSpec(after="lr-rewind", epochs=5), "from 1 to 4, not 5"),
        (PruneSpec(after="rewnd", epochs=1), "fine-tune, lr-rewind or rewind"),  # type: ignore[arg-type]
        (PruneSpec(epochs=-1), "prune.epochs"),
    ],
)
def test_mistakes(how: PruneSpec, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(how, TRAIN)
    if how.after == "rewind":
        with pytest.raises(ValueError, match="go back to"):
            after(replace(how, epochs=1), net())


def test_a_comparison_rewinds_to_weights_that_its_dense_run_kept(tmp_path: Path) -> None:
    spec = recipe("digits-mlp")
    spec = replace(
        spec,
        model=ModelSpec(width=16, depth=1),
        train=replace(spec.train, epochs=3),
        prune=replace(spec.prune, epochs=1, after="rewind", examples=64),
        densities=(0.2,),
        robustness=0,
    )
    done = compare.run(spec, root=tmp_path)
    source = dense.run(compare.parent(spec), root=tmp_path)
    early = dense.weights(source, "epoch-000002")
    assert set(early) == set(dense.weights(source, "final"))
    assert not torch.equal(early["classifier.weight"], dense.weights(source, "final")["classifier.weight"])
    assert len(done.select(metric="accuracy", split="test")) == 2
