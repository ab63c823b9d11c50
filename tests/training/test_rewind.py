"""Rewind points: nothing live is shared with them, and nothing that steers a training is left behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nucleate.machine.tuning import Tuning
from nucleate.pruning.masks import Masks
from nucleate.spec import TrainSpec
from nucleate.training.rewind import RewindPoint
from nucleate.training.steps import StepTraining


class Dropped(nn.Module):
    """Batch normalisation and dropout: running statistics and random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Dropped()


def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(50, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def training(masks: Masks | None = None, **options: object) -> StepTraining:
    spec = TrainSpec(epochs=10, batch_size=8, **{"lr": 0.02, "optimizer": "adam", **options})  # type: ignore[arg-type]
    return StepTraining(network(), *points(), 3, spec, Tuning(threads=1), seed=4, masks=masks)


def state(t: StepTraining) -> list[Tensor]:
    held = [v.clone() for v in t.model.state_dict().values()]
    for _, entry in sorted(t.optimizer.state_dict()["state"].items()):
        held += [torch.as_tensor(v).clone() for _, v in sorted(entry.items())]
    return held


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def some_masks() -> Masks:
    generator = torch.Generator().manual_seed(2)
    return Masks(
        {
            "layers.0.weight": torch.rand(16, 6, generator=generator) < 0.4,
            "layers.4.weight": torch.rand(3, 16, generator=generator) < 0.4,
        }
    )


def test_a_point_does_not_train_on() -> None:
    t = training()
    point = t.snapshot()
    before = point.weights
    t.run(20)
    assert all(torch.equal(before[k], v) for k, v in point.weights.items())
    assert not torch.equal(before["layers.0.weight"], t.model.state_dict()["layers.0.weight"])
    assert all(v.data_ptr() != w.data_ptr() for v in point.weights.values() for w in t.model.state_dict().values())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rewound_training_repeats_every_bit(optimizer: str) -> None:
    t = training(optimizer=optimizer)
    t.run(9)
    point = t.snapshot()
    t.run(40)
    first = state(t)
    for _ in range(2):  # the second time too: restoring must not hand out the point's own memory
        t.rewind(point)
        assert t.step == 9
        t.run(40)
        assert equal(first, state(t))


def test_running_statistics_and_moments_come_back() -> None:
    t = training()
    start = t.snapshot()
    before = state(t)
    t.run(30)
    assert not torch.equal(t.model.state_dict()["layers.1.running_mean"], before[2])
    t.rewind(start)
    assert equal(before, state(t))
    assert len(t.optimizer.state) == 0, "Adam's moments of the first run must be gone"


def test_the_learning_rate_comes_back() -> None:
    t = training(schedule="steps")
    start = t.snapshot()
    t.run(t.horizon)
    assert t.optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)
    t.rewind(start)
    t.run(1)
    assert t.optimizer.param_groups[0]["lr"] == 0.02


def test_a_scheduler_comes_back() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    point = RewindPoint.take(net, optimizer, scheduler=scheduler)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    point.restore(net, optimizer, scheduler=scheduler)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (1.0, 0)


def test_random_generators_come_back() -> None:
    point = RewindPoint.take(network(), step=3)

    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    held = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    first = draws()
    draws()
    point.restore(network())
    assert draws() == first
    assert point.step == 3
    torch.set_rng_state(held[0])
    np.random.set_state(held[1])  # noqa: NPY002
    random.setstate(held[2])


def test_other_draws_in_the_process_change_nothing() -> None:
    a, b = training(), training()
    a.run(20)
    b.run(7)
    torch.rand(100)
    b.run(20)
    assert equal(state(a), state(b))


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    training().run(5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"optimizer": "sgd"}, {"optimizer": "adam"}, {"weight_decay": 0.1}])
def test_pruned_weights_stay_zero_and_kept_ones_train(options: dict[str, object]) -> None:
    masks = some_masks()
    t = training(masks, **options)
    start = {k: v.clone() for k, v in t.model.state_dict().items()}
    t.run(50)
    trained = t.model.state_dict()
    for name, mask in masks.items():
        keep = mask.bool()
        assert not trained[name][~keep].any()
        negative = keep & (start[name] < 0)
        assert bool(negative.any())
        assert bool((trained[name][negative] != start[name][negative]).all()), "negative weights train too"


def test_a_kept_weight_that_is_zero_trains_and_counts() -> None:
    masks = some_masks()
    t = training(masks)
    row, column = masks["layers.0.weight"].nonzero()[0].tolist()
    with torch.no_grad():
        t.model.get_parameter("layers.0.weight")[row, column] = 0.0
    t.run(20)
    assert float(t.model.get_parameter("layers.0.weight")[row, column].detach()) != 0.0
    assert t.masks.kept == masks.kept


def test_a_rewind_under_masks_gives_the_initial_values_bit_for_bit() -> None:
    dense = training()
    start = dense.snapshot()
    dense.run(30)
    masks = some_masks()
    t = training(masks)
    t.run(13)
    t.rewind(start)
    for name, mask in masks.items():
        assert torch.equal(t.model.state_dict()[name], start.weights[name] * mask)


def test_optimizer_state_of_pruned_weights_is_dropped() -> None:
    dense = training()
    dense.run(9)
    point, masks = dense.snapshot(), some_masks()
    point.restore(dense.model, dense.optimizer, masks=masks, rng=False)
    weight = dense.model.get_parameter("layers.0.weight")
    gone = ~masks["layers.0.weight"].bool()
    moment = dense.optimizer.state[weight]["exp_avg"]
    assert bool(moment.any())
    assert not moment[gone].any()
    assert not weight.detach()[gone].any()


def test_what_does_not_fit_is_refused() -> None:
    point = RewindPoint.take(network())
    with pytest.raises(ValueError, match="another model"):
        point.restore(nn.Linear(2, 2))
    net = network()
    with pytest.raises(ValueError, match="taken without a SGD"):
        point.restore(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_diverging_training_says_so() -> None:
    t = training(optimizer="sgd", lr=1e18)
    with pytest.raises(ValueError, match=r"became (nan|inf).*lower the learning rate"):
        t.run(40)
