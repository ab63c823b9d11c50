"""Pruning during training: what each arm removes and when, and that a killed run goes on to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nucleate.data import load
from nucleate.machine.tuning import Tuning
from nucleate.models import build
from nucleate.runs import Run
from nucleate.spec import DataSpec, ModelSpec, PruneStabilitySpec, StabilitySpec, TrainSpec
from nucleate.studies import prune_stability as study
from nucleate.studies.ladder.task import Task

SPEC = PruneStabilitySpec(
    recipe="small",
    seed=100,
    seeds=2,
    data=DataSpec(name="digits", train_size=160, test_size=80),
    model=ModelSpec(name="mlp", width=12, depth=2),
    train=TrainSpec(
        optimizer="adam", lr=5e-3, epochs=7, batch_size=30, schedule="constant", threads=1, precision="fp32"
    ),
    stability=StabilitySpec(density=0.5, events=(1, 3), start=2, end=5, validation=40),
)


def run(root: Path, stop_at: int | None = None) -> Run:
    done = 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        if done == stop_at:
            raise KeyboardInterrupt

    return study.run(SPEC, root=root, threads=1, tick=tick)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("stability"))


@pytest.fixture(scope="module")
def trained() -> study._Study:
    data = load(SPEC.data)
    own = study._Study(SPEC, Task.of(data, 40, 0), data.input_shape, Tuning(threads=1))
    own.before = {}  # type: ignore[attr-defined]
    for epoch in own.stack:
        due = [cell for cell, times in enumerate(own.times) if epoch.number in times]
        if epoch.number == 2:
            own.before = {cell: own.stack.state_dict(cell) for cell in due}  # type: ignore[attr-defined]
        list(own._events(due, epoch.number))
        if epoch.number == 2:
            own.after = {cell: own.stack.state_dict(cell) for cell in due}  # type: ignore[attr-defined]
    return own


def test_every_pruned_arm_ends_at_the_density_and_its_weights_are_zero(trained: study._Study) -> None:
    hidden = 64 * 12 + 12 * 12
    for cell, (_, arm) in enumerate(trained.cells):
        held = trained.stack.state_dict(cell)
        left = sum(int((w != 0).sum()) for name, w in held.items() if name.startswith("hidden") and w.ndim == 2)
        if arm.noise or not arm.events:
            assert left == hidden, arm.name
        else:
            assert left <= hidden // 2 and left == pytest.approx(hidden / 2, abs=64 * (arm.shape == "unit")), arm.name


@pytest.mark.parametrize("target", ["small", "large"])
def test_what_goes_first_is_smaller_or_larger_than_all_that_stays(trained: study._Study, target: str) -> None:
    seen = 0
    for cell, before in trained.before.items():  # type: ignore[attr-defined]
        _, arm = trained.cells[cell]
        if (arm.method, arm.target, arm.shape, arm.noise) != ("magnitude", target, "weight", ""):
            continue
        for name in ("hidden.0.linear.weight", "hidden.1.linear.weight"):
            gone = trained.after[cell][name] == 0  # type: ignore[attr-defined]
            sizes = before[name].abs()
            assert gone.any() and not gone.all()
            lower, upper = (gone, ~gone) if target == "small" else (~gone, gone)
            assert float(sizes[lower].max()) <= float(sizes[upper].min())
            seen += 1
    assert seen == 4


def test_controls_disturb_as_many_weights_as_pruning_takes(trained: study._Study) -> None:
    for cell, before in trained.before.items():  # type: ignore[attr-defined]
        _, arm = trained.cells[cell]
        if arm.shape != "weight" or arm.target != "random":
            continue
        after = trained.after[cell]  # type: ignore[attr-defined]
        for name in ("hidden.0.linear.weight", "hidden.1.linear.weight"):
            moved = int((after[name] != before[name]).sum())
            assert moved == before[name].numel() - round(before[name].numel() * 0.5 ** (1 / 3)), arm.name
            if arm.noise == "gauss":
                assert bool((after[name] != 0).all())


def test_all_arms_have_their_last_event_at_the_same_epoch(finished: Run) -> None:
    last: dict[str, int] = {}
    counts: dict[str, int] = {}
    for row in finished.select(metric="drop", seed=101):
        last[row["arm"]] = max(row["epoch"], last.get(row["arm"], 0))
        counts[row["arm"]] = counts.get(row["arm"], 0) + 1
        assert counts[row["arm"]] == row["event"]
    assert set(last.values()) == {5} and len(last) == len(study.arms_of(SPEC.stability)) - 1
    assert set(counts.values()) == {1, 3}


def test_instability_is_the_mean_drop(finished: Run) -> None:
    for row in finished.select(metric="instability", seed=100):
        drops = [r["value"] for r in finished.select(metric="drop", seed=100, arm=row["arm"])]
        assert row["value"] == pytest.approx(sum(drops) / len(drops) if drops else 0.0)


@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_killed_run_ends_in_the_same_records(finished: Run, tmp_path: Path, stop_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at)
    again = run(tmp_path)
    assert json.dumps(again.records) == json.dumps(finished.records)
    for name in again.tensor_names:
        for key, value in again.tensors(name).items():
            assert torch.equal(torch.from_numpy(value), torch.from_numpy(finished.tensors(name)[key]))


def test_networks_that_diverge_are_told_and_have_no_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exploding(spec: ModelSpec, *args: Any, **options: Any) -> torch.nn.Module:
        model = build(spec, *args, **options)
        if options["generator"].initial_seed() in seeds:
            for parameter in model.parameters():
                parameter.data.mul_(1e25)
        return model

    monkeypatch.setattr(study, "build", exploding)
    seeds = [101]
    done = study.run(SPEC, root=tmp_path, threads=1)
    known = {s: {r["value"] == r["value"] for r in done.select(metric="accuracy", seed=s)} for s in (100, 101)}
    assert known == {100: {True}, 101: {False}}
    assert {r["value"] == r["value"] for r in done.select(metric="drop", seed=101)} == {False}
    text = study.table(done)
    arms = len(study.arms_of(SPEC.stability))
    assert f"{arms} of {2 * arms} networks diverged" in text and "nan %" not in text
    seeds = [100, 101]
    with pytest.raises(ValueError, match=r"networks diverged: lower the learning rate \(0.005\)"):
        study.run(SPEC, root=tmp_path / "all", threads=1)


def test_the_table_names_every_arm(finished: Run) -> None:
    text = study.table(finished)
    assert all(arm.name in text for arm in study.arms_of(SPEC.stability))
    assert "rank correlation over all arms" in text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"density": 1.0}, "density"),
        ({"start": 5, "end": 4}, "start and"),
        ({"end": 7}, "before the last one"),
        ({"events": (9,)}, "events"),
        ({"targets": ()}, "at least one"),
    ],
)
def test_a_spec_that_makes_no_study_is_refused(fields: dict[str, object], says: str) -> None:
    own = StabilitySpec(**{"density": 0.5, "events": (1,), "start": 2, "end": 5, **fields})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=says):
        study.check(PruneStabilitySpec(train=SPEC.train, stability=own))
