"""Training what masks leave gives what masked dense training gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from nucleate.compact import native
from nucleate.compact.learn import Learner, Rule
from nucleate.machine.tuning import Tuning
from nucleate.pruning.masks import Masks
from nucleate.spec import DataSpec, LadderSpec, ModelSpec, TicketsSpec, TrainSpec
from nucleate.studies import setting, tickets
from nucleate.training import Training
from nucleate.training.held import HeldOut
from nucleate.training.steps import StepTraining
from nucleate.training.survivors import ChainSurvivors, ModuleSurvivors, break_even, survivors

needs_native = pytest.mark.skipif(not native.available(), reason=native.status())
ALWAYS, NEVER = Tuning(threads=1, sparse_below=1.0), Tuning(threads=1, sparse_below=0.0)


class Tied(nn.Module):
    """Two maps share a weight, which has to stay dense."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.b(torch.relu(self.a(x)))))
        return out


def network(kind: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "chain":
            return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))
        if kind == "norm":
            return nn.Sequential(nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 3))
        if kind == "tied":
            return Tied()
        return nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 2),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


def masks_of(model: nn.Module, density: float = 0.3, *, bias: bool = False) -> Masks:
    g = Generator().manual_seed(7)
    own = [(n, p) for n, p in model.named_parameters() if p.dim() > 1 or (bias and n == "0.bias")]
    found = {n: (torch.rand(p.shape, generator=g) < density).byte() for n, p in own}
    return Masks(found, coupled=frozenset({"0.bias"} if bias else ()))


def points() -> tuple[Tensor, Tensor]:
    g = Generator().manual_seed(1)
    inputs = torch.randn(90, 12, generator=g)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def training(
    kind: str, tuning: Tuning, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: object
) -> StepTraining:
    settings = {"lr": 0.02, "batch_size": 16, "epochs": 40, "sparse": True, "weight_decay": 1e-3, **options}
    inputs, labels = points()
    model = network(kind, seed).to(dtype)
    spec = TrainSpec(**settings)  # type: ignore[arg-type]
    return StepTraining(model, inputs.to(dtype), labels, 3, spec, tuning, seed=seed, masks=masks_of(model))


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["chain", "norm", "conv", "tied"])
def test_200_steps_in_float64_equal_masked_dense_training(kind: str, optimizer: str) -> None:
    ours, theirs = (
        training(kind, tuning, dtype=torch.float64, optimizer=optimizer, lr=0.02 if optimizer == "sgd" else 1e-3)
        for tuning in (ALWAYS, NEVER)
    )
    assert isinstance(ours._survivors, ModuleSurvivors) and theirs._survivors is None
    for t in (ours, theirs):
        t.run(200)
    assert distance(ours.model, theirs.model) < 1e-9
    x = HeldOut(points()[0].double())
    assert torch.allclose(ours.logits(x), theirs.logits(x), atol=1e-6)
    assert distance(ours.model, network(kind).double()) > 1e-3


@needs_native
@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_native_steps_end_nearer_to_dense_ones_than_two_seeds_do(optimizer: str, loss: str) -> None:
    options = {"optimizer": optimizer, "loss": loss, "lr": 0.02 if optimizer == "sgd" else 2e-3}
    ours, theirs, other = (
        training("chain", tuning, seed=seed, **options) for tuning, seed in ((ALWAYS, 0), (NEVER, 0), (NEVER, 1))
    )
    exact = training("chain", NEVER, dtype=torch.float64, **options)
    assert isinstance(ours._survivors, ChainSurvivors)
    for t in (ours, theirs, other, exact):
        t.run(200)
    x = HeldOut(points()[0])
    assert torch.allclose(ours.logits(x), theirs.logits(x), atol=0.02)
    assert distance(ours.model, exact.model) < 0.02 * distance(other.model, theirs.model)
    assert all(bool((w[ours.masks[name] == 0] == 0).all()) for name, w in ours.masks.find(ours.model).items())


@pytest.mark.parametrize("kind", ["chain", "norm", "conv"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_training_ends_in_the_same_bits(kind: str, optimizer: str) -> None:
    whole, parts = (training(kind, ALWAYS, optimizer=optimizer) for _ in range(2))
    whole.run(30)
    parts.run(11)
    point = parts.snapshot()
    again = training(kind, ALWAYS, optimizer=optimizer, seed=0)
    again.rewind(point)
    again.run(30)
    assert distance(whole.model, again.model) == 0
    # A dense training goes on from the same state: it has the same momentum.
    dense = training(kind, NEVER, optimizer=optimizer)
    dense.rewind(point)
    dense.run(14)
    again.rewind(point)
    again.run(14)
    assert distance(dense.model, again.model) < 1e-4


def test_the_loop_trains_what_is_left_and_resumes() -> None:
    inputs, labels = points()
    spec = TrainSpec(lr=0.05, batch_size=16, epochs=6, sparse=True, schedule="constant")

    def fresh(tuning: Tuning) -> Training:
        model = network("chain")
        return Training(model, inputs, labels, 3, spec, tuning, masks=masks_of(model))

    ours, theirs = fresh(ALWAYS), fresh(NEVER)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.step == other.step and ours.fits() == theirs.fits()
        assert mine.number == 0 or abs(mine.loss - other.loss) < 1e-4
        if mine.number == 3:
            kept = ours.state(note=1)
    assert distance(ours.model, theirs.model) < 1e-3
    again = fresh(ALWAYS)
    assert again.load(kept) == {"note": 1}
    for _ in again:
        pass
    assert distance(ours.model, again.model) == 0


def test_break_even_is_measured_and_decides() -> None:
    model, (inputs, labels) = network("chain"), points()
    before = [p.clone() for p in model.parameters()]
    spec = TrainSpec(batch_size=16, sparse=True)
    below = break_even(model, list(masks_of(model)), inputs, labels, 3, spec, Tuning(threads=1))
    assert 0 <= below <= 1
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    for density, tuning, found in ((0.3, ALWAYS, True), (0.3, NEVER, False), (1.0, ALWAYS, False)):
        masks = masks_of(model, density)
        assert (survivors(model, masks, inputs, labels, 3, spec, tuning) is not None) == found


def test_masked_biases_are_held_too() -> None:
    inputs, labels = points()
    model = network("chain")
    masks = masks_of(model, bias=True)
    spec = TrainSpec(lr=0.05, batch_size=16, epochs=3, sparse=True)
    trained = StepTraining(model, inputs, labels, 3, spec, ALWAYS, masks=masks)
    assert isinstance(trained._survivors, ModuleSurvivors)
    trained.run(10)
    bias = model.get_parameter("0.bias")
    assert bool((bias[masks["0.bias"] == 0] == 0).all()) and bool((bias[masks["0.bias"] == 1] != 0).all())


class Dropped(nn.Module):
    """Modules of a chain, and units dropped between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(nn.functional.dropout(self.relu(self.a(x)), 0.5, self.training))
        return out


@needs_native
def test_functional_dropout_is_no_native_step() -> None:
    model, (inputs, labels) = Dropped(), points()
    found = survivors(model, masks_of(model), inputs, labels, 3, TrainSpec(batch_size=16, sparse=True), ALWAYS)
    assert isinstance(found, ModuleSurvivors)


@needs_native
def test_refusals_name_what_is_wrong() -> None:
    net = [nn.Linear(4, 8), nn.Linear(8, 2)]
    rule = Rule(optimizer="sgd")
    with pytest.raises(ValueError, match=r"mask of shape \(3, 3\) does not fit a weight of shape \(8, 4\)"):
        Learner(net, [torch.ones(3, 3), None], batch=4, rule=rule)
    with pytest.raises(ValueError, match=r"float32 on the CPU, not torch.float64"):
        Learner([nn.Linear(2, 2).double()], [None], batch=4, rule=rule)
    learner = Learner(net, [None, None], batch=4, rule=rule)
    with pytest.raises(ValueError, match="1 to 4 points, not 5"):
        learner.step(torch.ones(9, 4), torch.zeros(9).long(), torch.arange(5), 0.1)
    with pytest.raises(ValueError, match=r"\(N, 4\), not torch.float32 \(9, 3\)"):
        learner.logits(torch.ones(9, 3))
    with pytest.raises(ValueError, match=r"train.sparse trains on the CPU, not on cuda"):
        training("chain", ALWAYS, device="cuda")


def ladder(*, sparse: bool) -> TicketsSpec:
    return TicketsSpec(
        seed=100,
        data=DataSpec(name="digits", train_size=300, test_size=60),
        model=ModelSpec(name="lenet", width=24, init="glorot"),
        train=TrainSpec(
            optimizer="adam", lr=2e-3, weight_decay=0.0, epochs=4, batch_size=40, schedule="constant", threads=1,
            precision="fp32", sparse=sparse,
        ),
        ladder=LadderSpec(rounds=3, validation=40, every=4, rewind_step=2, controls=("reinit",)),
    )  # fmt: skip


def test_ladders_train_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "break_even", lambda *_: 1.0)
    runs = [tickets.run(ladder(sparse=sparse), root=tmp_path) for sparse in (True, False)]
    assert [r.env["tuning"]["sparse_below"] for r in runs] == [1.0, None]
    ours, theirs = ([r for r in run.records if r["metric"] == "loss"] for run in runs)
    assert len(ours) == len(theirs) > 20
    for a, b in zip(ours, theirs, strict=True):
        assert a["weights"] == b["weights"] and abs(a["value"] - b["value"]) < 1e-3

    class Killed(Exception):
        """Nobody catches it."""

    left = 15

    def tick(epochs: int) -> None:
        nonlocal left
        left -= epochs
        if left < 0:
            raise Killed

    with pytest.raises(Killed):
        tickets.run(ladder(sparse=True), root=tmp_path / "again", tick=tick)
    resumed = tickets.run(ladder(sparse=True), root=tmp_path / "again")
    assert resumed.records == runs[0].records
