"""The loop: what an epoch depends on, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.machine.tuning import Tuning
from nucleate.spec import TrainSpec
from nucleate.training import Training
from nucleate.training.loop import batches, learning_rate, loss_of

PLAIN = Tuning(threads=1)


def make(spec: TrainSpec, *, seed: int = 0, norm: bool = True, dropout: float = 0.0) -> Training:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(33, 4, generator=generator)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)]
    model = nn.Sequential(*(m for m in layers if norm or not isinstance(m, nn.BatchNorm1d)))
    if dropout:
        model.insert(len(model) - 1, nn.Dropout(dropout))
    return Training(model, inputs, labels, 3, spec, PLAIN, seed=seed)


def weights(training: Training) -> list[Tensor]:
    return [v.clone() for v in training.model.state_dict().values()]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_training_ends_in_the_same_bits(optimizer: str, stop: int) -> None:
    spec = TrainSpec(epochs=6, batch_size=8, lr=0.01, optimizer=optimizer)  # type: ignore[arg-type]
    whole = make(spec)
    losses = [e.loss for e in whole]
    first = make(spec)
    for epoch in first:
        if epoch.number == stop:
            break
    content = first.state(zero=7)
    second = make(spec)
    assert second.load(content) == {"zero": 7}
    assert [e.loss for e in second] == losses[stop + 1 :]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))


class TestDropout:
    """What a network draws belongs to its own training."""

    SPEC = TrainSpec(epochs=4, batch_size=8, lr=0.05)

    def test_two_trainings_and_a_resumed_one_end_in_the_same_bits(self) -> None:
        first, second, third = (make(self.SPEC, dropout=0.5) for _ in range(3))
        for epoch in first:
            if epoch.number == 2:
                third.load(first.state())
        torch.rand(7)
        list(second)
        torch.rand(3)
        list(third)
        for other in (second, third):
            assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(other), strict=True))

    def test_every_seed_and_every_epoch_drops_its_own(self) -> None:
        def dropped(seed: int) -> list[Tensor]:
            training, found = make(self.SPEC, seed=seed, dropout=0.5), []
            training.model[3].register_forward_hook(lambda module, args, out: found.append((args[0] != 0) & (out == 0)))
            list(training)
            return [torch.cat(found[i : i + 4])[:30] for i in range(0, 16, 4)]

        one, other = dropped(0), dropped(1)
        assert not torch.equal(one[0], one[1])
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_the_global_generator_stays(self) -> None:
        before = torch.get_rng_state()
        list(make(self.SPEC, dropout=0.5))
        assert torch.equal(before, torch.get_rng_state())

    def test_processes_drop_different_units(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second = make(self.SPEC, dropout=0.5), make(self.SPEC, dropout=0.5)
        list(first)
        monkeypatch.setattr("nucleate.training.parallel.rank", lambda: 1)
        list(second)
        assert not torch.equal(weights(first)[0], weights(second)[0])


def test_one_epoch_equals_plain_torch() -> None:
    spec = TrainSpec(epochs=1, batch_size=8, lr=0.1, weight_decay=1e-2, schedule="constant")
    ours, theirs = make(spec, norm=False), make(spec, norm=False)
    list(ours)
    optimizer = torch.optim.SGD(theirs.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for index in batches(33, 8, seed=0, epoch=0):
        optimizer.zero_grad()
        F.cross_entropy(theirs.model(theirs.inputs[index]), theirs.labels[index]).backward()
        optimizer.step()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_seeds_shuffle_differently_and_every_point_is_seen_once() -> None:
    first, second = (torch.cat(batches(100, 7, seed=s, epoch=0)) for s in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(100))
    assert not torch.equal(first, torch.cat(batches(100, 7, seed=0, epoch=1)))


def test_fits_is_the_error_in_eval_mode() -> None:
    training = make(TrainSpec(epochs=150, batch_size=33, lr=0.1, weight_decay=0.0, schedule="constant"))
    for _ in training:
        training.model.eval()
        with torch.no_grad():
            error = (training.model(training.inputs).argmax(1) != training.labels).float().mean().item()
        training.model.train()
        assert training.fits() == (error == 0)
    training.spec = TrainSpec(error_floor=0.99)
    assert training.fits()


def test_nothing_global_changes() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.random.get_rng_state()
    list(make(TrainSpec(epochs=2, batch_size=8)))
    assert before[:2] == (torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert torch.equal(before[2], torch.random.get_rng_state())


def test_divergence_is_one_error() -> None:
    with pytest.raises(ValueError, match="lower the learning rate"):
        list(make(TrainSpec(epochs=50, batch_size=8, lr=1e30, loss="mse"), norm=False))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("epochs", 0),
        ("batch_size", 0),
        ("threads", 0),
        ("error_floor", 1.0),
        ("weight_decay", math.nan),
        ("momentum", 1.0),
    ],
)
def test_numbers_that_make_no_training_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"train\.{name} .*, not {value}"):
        make(TrainSpec(**{name: value}))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this computer has CUDA")
def test_cuda_without_a_device_is_one_error() -> None:
    with pytest.raises(ValueError, match=r"train.device is 'cuda', but this computer has cpu"):
        make(TrainSpec(device="cuda"))


def test_schedules() -> None:
    cosine = TrainSpec(lr=2.0, epochs=10, schedule="cosine")
    assert learning_rate(cosine, 0) == 2.0
    assert learning_rate(cosine, 5) == pytest.approx(1.0)
    assert learning_rate(TrainSpec(lr=2.0, schedule="constant"), 99) == 2.0


def test_squared_loss_is_the_mean_over_points_and_classes() -> None:
    outputs, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    assert loss_of(outputs, labels, "mse", 2).item() == pytest.approx((1 + 1) / 2)


@pytest.mark.parametrize("kind", ["cross-entropy", "mse"])
def test_one_hot_targets_are_labels(kind: str) -> None:
    """Of single points and of sequences, whose classes are the last axis."""
    draw = torch.Generator().manual_seed(0)
    for shape in ((5,), (5, 4)):
        outputs, labels = torch.randn(*shape, 3, generator=draw), torch.randint(3, shape, generator=draw)
        soft = F.one_hot(labels, 3).float()
        torch.testing.assert_close(loss_of(outputs, soft, kind, 3), loss_of(outputs, labels, kind, 3))
