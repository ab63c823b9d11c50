"""The collapse study: terminal phase, resume after kills, one writer at a time."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nucleate.recipes.collapse import recipe
from nucleate.runs import Run, find_runs
from nucleate.spec import CollapseSpec, DataSpec, MeasureSpec, ModelSpec, to_toml
from nucleate.studies.cells import run_specs
from nucleate.studies.collapse import measured_epochs, run
from nucleate.studies.tables import zero_to_end

SCRIPT = """
import sys
from pathlib import Path
from nucleate.spec import CollapseSpec, from_toml
from nucleate.studies.collapse import run
run(from_toml(CollapseSpec, Path(sys.argv[1])), root=Path(sys.argv[2]))
"""


def short(epochs: int = 12) -> CollapseSpec:
    spec = recipe("digits-mlp")
    return replace(
        spec,
        model=ModelSpec(width=48, depth=2, batchnorm=True),
        train=replace(spec.train, epochs=epochs, threads=1),
        measure=MeasureSpec(points=4, picture=50, subsample=100, robustness=40),
    )


def same(a: Run, b: Run) -> None:
    assert _rows(a) == _rows(b)
    assert a.tensor_names == b.tensor_names
    for name in a.tensor_names:
        x, y = a.tensors(name), b.tensors(name)
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def _rows(run: Run) -> list[str]:
    return (run.path / "records.jsonl").read_text().splitlines()


def test_the_terminal_phase_begins_at_the_first_epoch_without_error(tmp_path: Path) -> None:
    spec = short(25)
    done = run(spec, root=tmp_path)
    zero = done.env["zero_error_epoch"]
    assert done.done and zero > 0
    errors = {r["epoch"]: r["value"] for r in done.select(metric="error", split="train")}
    assert errors[zero] == 0
    assert all(value > 0 for epoch, value in errors.items() if epoch < zero)
    assert set(errors) == measured_epochs(25, 4) | {zero}
    assert f"zero error at epoch {zero}" in zero_to_end(done)
    nc1 = {r["epoch"]: r["value"] for r in done.select(metric="nc1", split="train", layer="penultimate")}
    assert nc1[25] < nc1[zero] < nc1[0]


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    spec = short(40)
    (tmp_path / "spec.toml").write_text(to_toml(spec))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "spec.toml")]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    length = time.monotonic() - start
    dice = random.Random(4)
    for _ in range(10):
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        time.sleep(length * dice.uniform(0.3, 0.9))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    (whole,), (killed,) = find_runs(tmp_path / "whole"), find_runs(tmp_path / "killed")
    same(whole, killed)
    assert not list(killed.path.rglob("*.tmp"))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(short(3), root=tmp_path)
    before = (first.path / "records.jsonl").stat().st_mtime_ns
    assert run(short(3), root=tmp_path).path == first.path
    assert (first.path / "records.jsonl").stat().st_mtime_ns == before


def test_processes_give_the_same_runs_as_one(tmp_path: Path) -> None:
    specs = [replace(short(3), seed=s) for s in (0, 1)]
    serial = run_specs(specs, root=tmp_path / "a", progress=False)
    pooled = run_specs(specs, root=tmp_path / "b", jobs=2, progress=False)
    for a, b in zip(serial, pooled, strict=True):
        assert _rows(a) == _rows(b)
    assert _rows(serial[0]) != _rows(serial[1])


def test_without_zero_error_the_table_says_so(tmp_path: Path) -> None:
    spec = replace(short(1), train=replace(short().train, epochs=1, lr=1e-6))
    assert "zero error not reached" in zero_to_end(run(spec, root=tmp_path))


def test_squared_loss_reaches_the_terminal_phase_too(tmp_path: Path) -> None:
    spec = replace(short(60), model=ModelSpec(width=128, depth=2, batchnorm=True))
    done = run(replace(spec, train=replace(spec.train, loss="mse", lr=0.3, weight_decay=1e-4)), root=tmp_path)
    assert done.env["zero_error_epoch"] > 0


def test_conflicting_labels_have_a_terminal_phase_at_a_stated_error(tmp_path: Path) -> None:
    # Six of sixty points come twice with two labels, so six of 120 answers are wrong whatever the network does.
    generator = np.random.default_rng(0)
    points = generator.normal(size=(60, 8)).astype(np.float32)
    labels = generator.integers(3, size=60)
    twice = np.where(np.arange(60) < 6, (labels + 1) % 3, labels)
    arrays = {"x_train": np.concatenate([points, points]), "y_train": np.concatenate([labels, twice])}
    np.savez(tmp_path / "twins.npz", **arrays, x_test=points, y_test=labels)
    spec = replace(short(60), data=DataSpec(name=str(tmp_path / "twins.npz")), model=ModelSpec(width=128, depth=2))
    spec = replace(spec, train=replace(spec.train, weight_decay=0.0, lr=0.05, batch_size=120, schedule="constant"))
    strict = run(spec, root=tmp_path)
    assert strict.env["zero_error_epoch"] == -1
    lenient = run(replace(spec, train=replace(spec.train, error_floor=0.05)), root=tmp_path)
    zero = lenient.env["zero_error_epoch"]
    assert zero > 0
    errors = {r["epoch"]: r["value"] for r in lenient.select(metric="error", split="train")}
    assert errors[zero] == errors[60] == 0.05
    assert lenient.select(metric="zero_error_kept")[0]["value"] > 0.5
    assert f"zero error at epoch {zero}" in zero_to_end(lenient)


@pytest.mark.parametrize("name", ["blobs", "spirals"])
def test_noisy_synthetic_labels_are_fitted_and_measured(tmp_path: Path, name: str) -> None:
    spec = replace(short(60), data=DataSpec(name=name, train_size=90, test_size=60, label_noise=0.1))
    spec = replace(spec, model=ModelSpec(width=128, depth=2, batchnorm=True))
    spec = replace(spec, train=replace(spec.train, weight_decay=0.0, error_floor=0.15, batch_size=30))
    done = run(spec, root=tmp_path)
    assert done.env["zero_error_epoch"] > 0
    ends = {r["metric"]: r["value"] for r in done.select(epoch=60, split="train", layer="penultimate")}
    assert 0 < ends["nc1_quotient"] < 10 and 0 <= ends["nc4"] <= 1
