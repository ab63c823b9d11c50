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
import torch
from torch import nn

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


def gap(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network whose head is no module."""

    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 16)
            self.head = nn.Parameter(torch.ones(num_classes, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x.flatten(1)) @ self.head.T

    return Headless()


def labels_with_gaps() -> tuple[torch.Tensor, ...]:
    """Two classes, 0 and 3; 1 and 2 have no point."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2 * 3
    points = torch.randn(80, 6, generator=draw) + labels[:, None]
    return points, labels, points + 0.1, labels


def test_the_convention_reaches_every_measure(tmp_path: Path) -> None:
    spec = short(3)
    found = {}
    for name in ("papyan2020", "jiang2023"):
        done = run(replace(spec, measure=replace(spec.measure, convention=name)), root=tmp_path)
        (last,) = [r for r in done.select(metric="nc3", split="train", layer="penultimate") if r["epoch"] == 3]
        (cosine,) = [r for r in done.select(metric="nc3_cosine", split="train", layer="penultimate") if r["epoch"] == 3]
        found[name] = last["value"], cosine["value"]
    # Jiang et al. measure self-duality by cosines, of features of length one.
    assert found["jiang2023"][0] == found["jiang2023"][1] != found["papyan2020"][1]
    assert found["papyan2020"][0] != found["papyan2020"][1]


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("measure", "convention", "nope", "unknown convention 'nope'"),
        ("measure", "points", 1, "at least 2"),
        ("model", "name", f"{__name__}:gap", "'first', gives 16 values, not one for each of the 10 classes"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_folder_is_made(
    tmp_path: Path, part: str, field: str, value: object, message: str
) -> None:
    spec = short(3)
    with pytest.raises(ValueError, match=message):
        run(replace(spec, **{part: replace(getattr(spec, part), **{field: value})}), root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_class_without_points_is_nobody_s_nearest_centre(tmp_path: Path) -> None:
    spec = short(3)
    data = DataSpec(name=f"{__name__}:labels_with_gaps")
    done = run(replace(spec, data=data, train=replace(spec.train, batch_size=16)), root=tmp_path)
    right = done.tensors(done.tensor_names[-1])["ncc_correct"].mean(1)
    shares = [r for r in done.select(metric="ncc_accuracy", split="test") if r["epoch"] == 3]
    assert len(shares) >= 3
    by_layer = {r["layer"]: r["value"] for r in shares}
    for layer, share in zip(done.env["layers"], right, strict=True):
        assert share == pytest.approx(by_layer[layer])


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
