"""Stacked equals unstacked."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nucleate.compact import native
from nucleate.machine.extension import DISABLE
from nucleate.machine.tuning import Tuning
from nucleate.models.mlp import MLP
from nucleate.spec import TrainSpec
from nucleate.training import Replica, Stack, Training
from nucleate.training.loop import batches

PLAIN = Tuning(threads=1)
FUSED = Tuning(threads=1, fused=True)
ADAM = TrainSpec(optimizer="adam", lr=0.01, weight_decay=1e-3, schedule="constant", batch_size=8, epochs=5)
SGD = TrainSpec(optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine", batch_size=8, epochs=5)


def points(n: int = 33, d: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, classes, (n,), generator=generator)


def net(seed: int, width: int = 12, depth: int = 2, *, norm: bool = False, d: int = 5) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MLP(d, 3, width=width, depth=depth, batchnorm=norm).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                # A unit without inputs would lie at ReLU's kink exactly, where rounding decides its gradient.
                nn.init.normal_(module.bias, 0.0, 0.1)
        return model


def masks_of(model: nn.Module, seed: int, share: float = 0.5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(p.shape, generator=generator) < share).to(torch.uint8)
        for name, p in model.named_parameters()
        if p.ndim == 2
    }


def alone(replica: Replica, inputs: Tensor, tuning: Tuning = PLAIN) -> tuple[dict[str, Tensor], list[float]]:
    training = Training(
        deepcopy(replica.model),
        inputs,
        replica.labels,
        3,
        replica.spec,
        tuning,
        seed=replica.seed,
        masks=replica.masks,
    )
    losses = [epoch.loss for epoch in training]
    return training.model.state_dict(), losses[1:]


def tolerance(spec: TrainSpec, norm: bool) -> float:
    # Shifts and scales before a batch normalisation have gradient zero; Adam makes steps of rounding / 1e-8 of them.
    return 1e-6 if norm and spec.optimizer == "adam" else 1e-9


def assert_equal_to_unstacked(replicas: list[Replica], inputs: Tensor, tuning: Tuning, atol: float) -> None:
    stack = Stack(replicas, inputs, 3, tuning)
    losses = torch.stack([epoch.losses for epoch in stack][1:])
    for i, replica in enumerate(replicas):
        weights, own = alone(replica, inputs, tuning)
        stacked = stack.state_dict(i)
        assert stacked.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(stacked[name], value, rtol=0, atol=atol)
        torch.testing.assert_close(losses[: len(own), i], torch.tensor(own, dtype=torch.float64), rtol=0, atol=atol)
        assert losses[len(own) :, i].isnan().all()


@pytest.mark.parametrize(
    ("loss", "tuning"), [("cross-entropy", FUSED), ("mse", PLAIN)], ids=["cross-entropy, fused", "mse, plain"]
)
@pytest.mark.parametrize("spec", [ADAM, SGD, replace(SGD, momentum=0.0)], ids=["adam", "sgd", "sgd without momentum"])
@pytest.mark.parametrize("norm", [False, True])
def test_two_hundred_steps_in_float64_agree_to_1e_9(loss: str, norm: bool, spec: TrainSpec, tuning: Tuning) -> None:
    inputs, labels = points()
    spec = replace(spec, epochs=50, loss=loss)  # type: ignore[arg-type]
    assert 50 * len(batches(33, 8, seed=0, epoch=0)) == 200
    replicas = []
    for i in range(4):
        model = net(i, width=(12, 7, 12, 3)[i], norm=norm)
        replicas.append(
            Replica(
                model=model,
                labels=labels.roll(i),
                spec=replace(spec, lr=spec.lr * (1 + i % 2), weight_decay=1e-3 * i, epochs=(50, 50, 20, 50)[i]),
                seed=i // 2,
                masks=masks_of(model, i) if i % 2 else None,
            )
        )
    assert_equal_to_unstacked(replicas, inputs, tuning, tolerance(spec, norm))


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    depth=st.integers(0, 4),
    norm=st.booleans(),
    adam=st.booleans(),
    masked=st.booleans(),
    d=st.integers(1, 9),
    batch=st.integers(1, 40),
)
def test_any_architecture_trains_as_it_would_alone(
    widths: list[int], depth: int, norm: bool, adam: bool, masked: bool, d: int, batch: int
) -> None:
    # Normalisation makes signs of two points, and multiplies rounding by as much as it has to: no small batches there.
    batch = max(batch, 8) if norm else batch
    inputs, labels = points(2 * batch if norm else 25, d)
    spec = replace(ADAM if adam else SGD, epochs=2, batch_size=batch)
    models = [net(i, w, depth, norm=norm, d=d) for i, w in enumerate(widths)]
    replicas = [
        Replica(model=m, labels=labels, spec=spec, seed=i, masks=masks_of(m, i) if masked else None)
        for i, m in enumerate(models)
    ]
    assert_equal_to_unstacked(replicas, inputs, PLAIN, 1e-6 if norm else 1e-9)


def float32_replicas(count: int, first: int = 0) -> tuple[list[Replica], Tensor]:
    inputs, labels = points()
    spec = replace(ADAM, batch_size=33, epochs=1)
    made = [
        Replica(model=net(first + i).float(), labels=labels, spec=spec, seed=first + i, masks=masks_of(net(0), i))
        for i in range(count)
    ]
    return made, inputs.float()


def test_one_step_in_float32_agrees_within_rounding() -> None:
    replicas, inputs = float32_replicas(5)
    stack = Stack(replicas, inputs, 3, FUSED)
    list(stack)
    assert stack.step == 1
    for i, replica in enumerate(replicas):
        for name, value in alone(replica, inputs, FUSED)[0].items():
            # A step of Adam is at most lr = 0.01 long; rounding is its 6e-8-th part times the products' lengths.
            torch.testing.assert_close(stack.state_dict(i)[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
def test_a_replica_does_not_notice_which_others_are_stacked_with_it(norm: bool) -> None:
    inputs, labels = points()
    spec = replace(ADAM, epochs=8)
    made = [Replica(model=net(i, norm=norm).float(), labels=labels.roll(i), spec=spec, seed=i) for i in range(7)]
    whole = Stack(made, inputs.float(), 3, FUSED)
    list(whole)
    for members in ([3], [6, 3], [0, 1, 2, 3, 4]):
        part = Stack([made[i] for i in members], inputs.float(), 3, FUSED)
        list(part)
        for place, i in enumerate(members):
            for name, value in whole.state_dict(i).items():
                assert torch.equal(part.state_dict(place)[name], value)


def test_the_endpoints_differ_less_than_two_seeds_do() -> None:
    inputs, labels = points(200, 5)
    spec = replace(SGD, epochs=30, batch_size=20)
    made = [Replica(model=net(i).float(), labels=labels, spec=spec, seed=i) for i in range(4)]
    stack = Stack(made, inputs.float(), 3, FUSED)
    list(stack)
    ends = [alone(r, inputs.float(), FUSED)[0] for r in made]
    logits = stack.logits(inputs.float())
    models = [deepcopy(r.model) for r in made]
    for model, end in zip(models, ends, strict=True):
        model.load_state_dict(end)
    with torch.no_grad():
        own = torch.stack([m(inputs.float()) for m in models])
    apart = (own[0] - own[1:]).abs().mean()
    assert (own - logits).abs().mean() < 1e-3 * apart


@pytest.mark.parametrize("spec", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_stack_ends_in_the_same_bits(spec: TrainSpec, stop: int) -> None:
    inputs, labels = points()
    made = [
        Replica(
            model=net(i, 4 + i, norm=True).float(),
            labels=labels,
            spec=replace(spec, epochs=(6, 2, 6)[i], lr=spec.lr * (1 + i)),
            masks=masks_of(net(i, 4 + i, norm=True), i),
        )
        for i in range(3)
    ]
    whole = Stack(made, inputs.float(), 3, FUSED)
    losses = [epoch.losses for epoch in whole]
    first = Stack(made, inputs.float(), 3, FUSED)
    for epoch in first:
        if epoch.number == stop:
            break
    second = Stack(made, inputs.float(), 3, FUSED)
    assert second.load(first.state(zero=7)) == {"zero": 7}
    later = [epoch.losses for epoch in second]
    assert torch.equal(torch.stack(later).nan_to_num(), torch.stack(losses[stop + 1 :]).nan_to_num())
    for i in range(3):
        for name, value in whole.state_dict(i).items():
            assert torch.equal(second.state_dict(i)[name], value)


def test_a_stopped_replica_stays_as_it_is_and_the_others_go_on() -> None:
    inputs, labels = points()
    made = [Replica(model=net(i), labels=labels, spec=SGD, seed=i) for i in range(4)]
    stack = Stack(made, inputs, 3, PLAIN)
    kept = {}
    for epoch in stack:
        if epoch.number == 2:
            stack.stop(1)
            kept = stack.state_dict(1)
    assert all(torch.equal(kept[name], value) for name, value in stack.state_dict(1).items())
    assert stack.ended(1)
    early, _ = alone(replace(made[1], spec=replace(SGD, schedule="constant")), inputs)
    assert early.keys() == kept.keys()
    for i in (0, 2, 3):
        for name, value in alone(made[i], inputs)[0].items():
            torch.testing.assert_close(stack.state_dict(i)[name], value, rtol=0, atol=1e-9)


def test_a_replica_that_diverged_has_no_measures_and_the_others_go_on() -> None:
    inputs, labels = points()
    rates = (0.05, 1e30)
    made = [Replica(model=net(i), labels=labels, spec=replace(SGD, lr=lr), seed=i) for i, lr in enumerate(rates)]
    stack = Stack(made, inputs, 3, PLAIN)
    epochs = list(stack)
    assert epochs[-1].number == 5 and stack.ended(1)
    assert all(bool(w.isnan().all()) for w in stack.state_dict(1).values())
    errors, losses = stack.evaluate(inputs, labels)
    assert torch.isnan(errors).tolist() == torch.isnan(losses).tolist() == [False, True]
    for name, value in alone(made[0], inputs)[0].items():
        torch.testing.assert_close(stack.state_dict(0)[name], value, rtol=0, atol=1e-9)


def test_evaluation_is_each_networks_own() -> None:
    inputs, labels = points(60)
    made = [Replica(model=net(i, 3 + 2 * i, norm=True), labels=labels, spec=SGD, seed=i) for i in range(3)]
    stack = Stack(made, inputs, 3, PLAIN)
    for epoch in stack:
        if epoch.number == 2:
            stack.stop(0)
    errors, losses = stack.evaluate(inputs, labels)
    for i, replica in enumerate(made):
        model = deepcopy(replica.model)
        model.load_state_dict(stack.state_dict(i))
        model.eval()
        with torch.no_grad():
            z = model(inputs)
        torch.testing.assert_close(stack.logits(inputs)[i], z, rtol=0, atol=1e-12)
        assert errors[i] == (z.argmax(1) != labels).double().mean()
        assert losses[i].item() == pytest.approx(nn.functional.cross_entropy(z, labels).item(), abs=1e-12)
    torch.testing.assert_close(stack.logits(inputs, [2, 0]), stack.logits(inputs)[[2, 0]], rtol=0, atol=1e-12)


def test_masked_weights_are_zero_throughout() -> None:
    inputs, labels = points()
    model = net(0)
    masks = masks_of(model, 3)
    stack = Stack([Replica(model=model, labels=labels, spec=SGD, masks=masks)], inputs, 3, PLAIN)
    for _ in stack:
        state = stack.state_dict(0)
        assert all((state[name][mask == 0] == 0).all() for name, mask in masks.items())
    assert all((state[name][mask == 1] != 0).all() for name, mask in masks.items())


def test_a_diverged_replica_ends_and_the_others_go_on() -> None:
    inputs, labels = points()
    wild = replace(SGD, lr=1e200, loss="mse")
    made = [Replica(model=net(i), labels=labels, spec=s) for i, s in enumerate([wild, replace(SGD, loss="mse")])]
    stack = Stack(made, inputs, 3, PLAIN)
    losses = torch.stack([epoch.losses for epoch in stack])
    assert stack.ended(0) and not losses[1, 0].isfinite()
    assert losses[1:, 1].isfinite().all()


def test_networks_and_global_state_are_left_alone() -> None:
    inputs, labels = points()
    model = net(0, norm=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.random.get_rng_state()
    list(Stack([Replica(model=model, labels=labels, spec=ADAM)], inputs, 3, FUSED))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert flags[:2] == (torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert torch.equal(flags[2], torch.random.get_rng_state())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.a(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))], "'1' is Tanh"),
        ([nn.Sequential(nn.Linear(5, 3), nn.ReLU())], "end in a Linear"),
        ([Residual()], "no plain chain"),
        ([MLP(5, 3, width=4, depth=1), MLP(5, 3, width=4, depth=2)], "widths of their hidden layers only"),
    ],
)
def test_what_is_no_chain_is_refused(models: list[nn.Module], message: str) -> None:
    inputs, labels = points()
    with pytest.raises(ValueError, match=message):
        Stack([Replica(model=m, labels=labels, spec=SGD) for m in models], inputs.float(), 3, PLAIN)


def test_what_does_not_fit_together_is_refused() -> None:
    inputs, labels = points()
    good = Replica(model=net(0), labels=labels, spec=SGD)
    for bad, message in (
        (replace(good, spec=replace(SGD, batch_size=9)), r"train\.batch_size, not 8, 9"),
        (replace(good, labels=labels[:4]), "labels of shape"),
        (replace(good, masks={"classifier.weight": torch.ones(2)}), "fits no parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            Stack([good, bad], inputs, 3, PLAIN)
    with pytest.raises(ValueError, match="no replica"):
        Stack([], inputs, 3, PLAIN)
    with pytest.raises(ValueError, match="no training point"):
        Stack([good], inputs[:0], 3, PLAIN)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_as_on_the_cpu() -> None:
    inputs, labels = points()
    for device in ("cpu", "cuda"):
        spec = replace(ADAM, device=device)
        stack = Stack([Replica(model=net(i), labels=labels, spec=spec, seed=i) for i in range(3)], inputs, 3, FUSED)
        list(stack)
        if device == "cpu":
            expected = stack.evaluate(inputs, labels)[1]
    torch.testing.assert_close(stack.evaluate(inputs, labels)[1], expected, rtol=0, atol=1e-9)


@pytest.mark.skipif(not native.available(), reason="the native kernel is not built")
@pytest.mark.parametrize("spec", [ADAM, SGD])
def test_the_native_update_is_torchs_within_rounding(spec: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = points()
    spec = replace(spec, lr=1e-3)
    made = [Replica(model=net(i).float(), labels=labels, spec=spec, seed=i) for i in range(3)]
    ours = Stack(made, inputs.float(), 3, FUSED)
    monkeypatch.setenv(DISABLE, "1")
    theirs = Stack(made, inputs.float(), 3, FUSED)
    assert (ours.update.kernel, theirs.update.kernel) == ("native", "torch")
    list(theirs)
    with pytest.raises(ValueError, match="updated by the torch kernel"):
        ours.load(theirs.state())
    monkeypatch.delenv(DISABLE)
    list(ours)
    for i in range(3):
        for name, value in theirs.state_dict(i).items():
            # 25 steps, each of them at most lr long, of which rounding is a small part.
            torch.testing.assert_close(ours.state_dict(i)[name], value, rtol=1e-4, atol=1e-5)
