"""A pruner in other people's loops: optimizers, clipping, accumulation, mixed precision, resume, copies, processes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from nucleate.pruning.dynamic import Movement, Regrow, rigl, set_
from nucleate.pruning.pruner import Pruner
from nucleate.pruning.schedule import Schedule, cubic, exponential, iterative, linear, one_shot


def problem(seed: int = 0) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    for p in model.parameters():
        p.data.normal_(0, 0.3, generator=generator)
    x = torch.randn(32, 12, generator=generator)
    return model, x, torch.randint(3, (32,), generator=generator)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pruner: Pruner,
    x: torch.Tensor,
    y: torch.Tensor,
    steps: int,
    *,
    clip: bool = False,
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if clip:
            pruner.mask_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        pruner.step()


def exact(model: nn.Module, pruner: Pruner) -> bool:
    own = dict(model.named_parameters())
    return all(bool((own[name][mask == 0] == 0).all()) for name, mask in pruner.masks.items())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum and decay": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda ps: torch.optim.Adam(ps, 0.01, weight_decay=0.1),
    "fused adamw": lambda ps: torch.optim.AdamW(ps, 0.01, weight_decay=0.1, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_lines_hold_the_masks(name: str) -> None:
    model, x, y = problem()
    keys, names = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = Pruner(model, optimizer, "magnitude", cubic(0.1, rounds=5, every=8))
    densities = []
    for _ in range(50):
        train(model, optimizer, pruner, x, y, 1)
        assert exact(model, pruner)
        densities.append(pruner.masks.density)
    assert densities == sorted(densities, reverse=True) and pruner.masks.kept == round(0.1 * (192 + 256))
    assert [e["step"] for e in pruner.events] == [8, 16, 24, 32, 40]
    assert list(model.state_dict()) == keys and [n for n, _ in model.named_parameters()] == names
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_the_state_of_pruned_weights_is_zero_at_the_event_and_stays_so_with_masked_gradients() -> None:
    model, x, y = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    pruner = Pruner(model, optimizer, "magnitude", one_shot(0.2, at=3))
    for step in range(1, 12):
        train(model, optimizer, pruner, x, y, 1, clip=True)
        if step >= 3:
            for name, mask in pruner.masks.items():
                state = optimizer.state[model.get_parameter(name)]
                for key in ("exp_avg", "exp_avg_sq"):
                    assert bool((state[key][mask == 0] == 0).all())
                    assert bool((state[key][mask == 1] != 0).all())


def test_masked_gradients_leave_the_norm_of_clipping() -> None:
    model, x, y = problem()
    pruner = Pruner(model, None, "random", 0.3)
    nn.functional.cross_entropy(model(x), y).backward()
    dense = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    pruner.mask_gradients()
    masked = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    want = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    assert masked == pytest.approx(want) and masked < dense


def test_accumulated_gradients_give_the_step_of_the_whole_batch() -> None:
    ends = []
    for parts in (1, 4):
        model, x, y = (t.double() if isinstance(t, nn.Module) or t.is_floating_point() else t for t in problem())
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        pruner = Pruner(model, optimizer, "magnitude", 0.3)
        for _ in range(10):
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(a), b) / parts).backward()
            optimizer.step()
            pruner.step()
        assert exact(model, pruner)
        ends.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-12)


def test_mixed_precision_and_a_skipped_step() -> None:
    model, x, y = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    pruner = Pruner(model, optimizer, "magnitude", 0.3)
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        # An overflow: the scaler skips the step and lowers the scale.
        scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
        scaler.unscale_(optimizer)
        pruner.mask_gradients()
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
        assert exact(model, pruner)
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert scaler.get_scale() == 2.0**7


@pytest.mark.parametrize("stop", [3, 10, 17])
def test_a_resumed_run_is_the_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Pruner, torch.Tensor, torch.Tensor]:
        model, x, y = problem()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        schedule = iterative(0.7, rounds=4, every=5, start=5)
        return model, optimizer, Pruner(model, optimizer, "magnitude", schedule, scope="layer"), x, y

    model, optimizer, pruner, x, y = fresh()
    train(model, optimizer, pruner, x, y, 30)
    want = model.state_dict()
    first, optimizer, part, x, y = fresh()
    train(first, optimizer, part, x, y, stop)
    torch.save({"m": first.state_dict(), "o": optimizer.state_dict(), "p": part.state_dict()}, tmp_path / "c.pt")
    held = torch.load(tmp_path / "c.pt", weights_only=True)
    again, optimizer, rest, x, y = fresh()
    again.load_state_dict(held["m"])
    optimizer.load_state_dict(held["o"])
    rest.load_state_dict(held["p"])
    assert rest.masks.density == part.masks.density
    train(again, optimizer, rest, x, y, 30 - stop)
    assert all(torch.equal(v, want[k]) for k, v in again.state_dict().items())
    assert rest.events == pruner.events


def test_copies_pickles_and_plain_classes() -> None:
    model, x, y = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = Pruner(model, optimizer, "magnitude", 0.3)
    train(model, optimizer, pruner, x, y, 2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    kept = pickle.loads(pickle.dumps(pruner))
    assert kept.steps == 2 and all(torch.equal(kept.masks[name], mask) for name, mask in pruner.masks.items())
    plain = problem(1)[0]
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize(
    "schedule",
    [
        one_shot(0.3, at=4),
        *(make(0.3, rounds=3, every=2) for make in (iterative, exponential, linear, cubic)),
    ],
)
def test_schedules_can_be_pickled(schedule: Schedule) -> None:
    kept = pickle.loads(pickle.dumps(schedule))
    assert [kept(t) for t in range(10)] == [schedule(t) for t in range(10)]


@pytest.mark.parametrize("grow", [None, "gradient"])
def test_weights_that_are_put_in_the_place_of_others_are_masked_too(grow: Any) -> None:
    model, x, y = problem()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    regrow = None if grow is None else Regrow(grow, stop=20, every=2)
    pruner = Pruner(model, optimizer, "magnitude", 0.3, regrow=regrow)
    model.load_state_dict({name: torch.randn_like(w) for name, w in model.state_dict().items()}, assign=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train(model, optimizer, pruner, x, y, 4)
    assert exact(model, pruner)


def test_compiled_models_train_and_prune_under_the_names_of_the_model_inside() -> None:
    model, x, y = problem()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.Adam(compiled.parameters(), 0.01)
    pruner = Pruner(compiled, optimizer, "magnitude", cubic(0.2, rounds=2, every=2))
    train(compiled, optimizer, pruner, x, y, 8)
    assert set(pruner.masks) == {"0.weight", "2.weight"}
    assert exact(model, pruner) and pruner.masks.kept == round(0.2 * 448)
    torch.testing.assert_close(compiled(x), model(x))


def test_schedules_follow_their_formulas() -> None:
    assert [one_shot(0.3, at=1)(t) for t in range(3)] == [1.0, 0.3, 0.3]
    assert [iterative(0.8, rounds=3, every=2, start=1)(t) for t in range(8)] == pytest.approx(
        [1, 0.8, 0.8, 0.64, 0.64, 0.512, 0.512, 0.512]
    )
    assert [exponential(0.01, rounds=4, every=1)(t) for t in range(5)] == pytest.approx(
        [0.01**0.25, 0.1, 0.01**0.75, 0.01, 0.01]
    )
    assert [linear(0.2, rounds=4, every=1)(t) for t in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    ramp = cubic(0.1, rounds=10, every=3, start=4)
    for step in range(60):
        progress = min(1.0, max(0.0, (step - 4) // 3 / 10))
        assert ramp(step) == pytest.approx(0.1 + 0.9 * (1 - progress) ** 3)
    for schedule in (iterative, exponential, linear, cubic):
        with pytest.raises(ValueError, match="kept share"):
            schedule(0.0, rounds=3, every=1)
        with pytest.raises(ValueError, match="at least 1"):
            schedule(0.5, rounds=0, every=1)


def test_a_share_of_what_remains_is_not_a_share_of_all() -> None:
    model, _, _ = problem()
    of_remaining = Pruner(copy.deepcopy(model), None, "magnitude", iterative(0.5, rounds=2, every=1))
    of_remaining.step()
    of_all = Pruner(model, None, "magnitude", one_shot(0.5))
    of_all.step()
    assert (of_remaining.masks.density, of_all.masks.density) == (0.25, 0.5)


def test_masks_are_nested_across_rounds() -> None:
    for method in ("random", "magnitude", "snip", "grasp"):
        model, x, y = problem()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        pruner = Pruner(model, optimizer, method, iterative(0.6, rounds=4, every=2), batches=[(x, y)])
        previous = pruner.masks
        for _ in range(8):
            train(model, optimizer, pruner, x, y, 1)
            assert pruner.masks.within(previous)
            previous = pruner.masks
        assert len(pruner.events) == 4


@pytest.mark.parametrize("grow", [rigl, set_])
@pytest.mark.parametrize("clip", [False, True])
def test_dynamic_training_keeps_the_count_of_every_layer_and_moves_the_masks(grow: Any, clip: bool) -> None:
    model, x, y = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = Pruner(model, optimizer, "random", 0.3, scope="erk", regrow=grow(stop=40, every=5))
    counts = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    seen = set()
    for step in range(1, 60):
        before = pruner.masks.clone()
        dense = {}
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        dense = {name: model.get_parameter(name).grad.clone() for name in before}  # type: ignore[union-attr]
        if clip:
            pruner.mask_gradients()
        optimizer.step()
        weights = {name: model.get_parameter(name).detach() * before[name] for name in before}
        weights = {name: w.clone() for name, w in weights.items()}
        pruner.step()
        assert exact(model, pruner)
        assert {name: int(mask.sum()) for name, mask in pruner.masks.items()} == counts
        moved = not all(torch.equal(pruner.masks[name], mask) for name, mask in before.items())
        if moved:
            seen.add(step)
        for name, mask in pruner.masks.items():
            new = (mask == 1) & (before[name] == 0)
            gone = (mask == 0) & (before[name] == 1)
            state = optimizer.state[model.get_parameter(name)]["exp_avg"]
            assert bool((model.get_parameter(name)[new] == 0).all()) and bool((state[new] == 0).all())
            if moved and int(gone.sum()):
                stay = (mask == 1) & (before[name] == 1)
                assert float(weights[name][gone].abs().max()) <= float(weights[name][stay].abs().max())
                if grow is rigl and int(new.sum()):
                    never = (mask == 0) & (before[name] == 0)
                    assert float(dense[name][new].abs().min()) >= float(dense[name][never].abs().max())
    assert seen == {5, 10, 15, 20, 25, 30, 35}


def test_growing_by_gradient_needs_one() -> None:
    model, x, y = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = Pruner(model, optimizer, "random", 0.3, regrow=rigl(stop=40, every=1))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="before zero_grad"):
        pruner.step()
    with pytest.raises(ValueError, match="fraction in"):
        rigl(stop=40, fraction=1.5)


def test_movement_adds_up_along_training() -> None:
    model, x, y = problem()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    movement = Movement(model, optimizer)
    pruner = Pruner(model, optimizer, movement, one_shot(0.3, at=10))
    want = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in model.named_parameters() if w.ndim == 2}
    for _ in range(10):
        before = {name: model.get_parameter(name).detach().clone() for name in want}
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for name in want:
            grad = model.get_parameter(name).grad
            assert grad is not None
            want[name] -= 0.05 * (before[name] * grad).double()
        optimizer.step()
        pruner.step()
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(movement.scores[name], want[name])
    flat = torch.cat([want[name].flatten() for name in ("0.weight", "2.weight")])
    threshold = flat.sort(descending=True).values[pruner.masks.kept - 1]
    assert torch.equal(pruner.masks["0.weight"].bool(), want["0.weight"] >= threshold)
    with pytest.raises(ValueError, match="no optimizer step yet"):
        Pruner(model, optimizer, Movement(model, optimizer), 0.5)


def test_a_pruner_refuses_early() -> None:
    model, _, _ = problem()
    with pytest.raises(ValueError, match="did you mean magnitude"):
        Pruner(model, None, "magnitud", one_shot(0.5, at=1000))
    with pytest.raises(ValueError, match="no layer matches"):
        Pruner(model, None, "magnitude", one_shot(0.5, at=1000), layers="fc")
    with pytest.raises(ValueError, match="kept share"):
        Pruner(model, None, "magnitude", 1.5)
    with pytest.raises(ValueError, match="needs data"):
        Pruner(model, None, "snip", 0.5)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, x, y = problem()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(wrapped.parameters(), 0.01)
    mine = x[rank::2], y[rank::2]
    pruner = Pruner(
        wrapped, optimizer, "snip", cubic(0.2, rounds=3, every=3), batches=[mine], regrow=rigl(stop=20, every=4)
    )
    train(wrapped, optimizer, pruner, *mine, 16, clip=True)
    assert exact(model, pruner) and pruner.masks.kept == round(0.2 * 448)
    torch.save({"state": model.state_dict(), "masks": dict(pruner.masks)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_hold_the_same_masks_and_weights(tmp_path: Path) -> None:
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for part in ("state", "masks"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())
