"""Descent along sparsity: which weights stay, what stands beside them, and where the curve turns."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nucleate.cli.main import main
from nucleate.models import build
from nucleate.report import figures
from nucleate.runs import Run
from nucleate.spec import DataSpec, DescentSpec, ModelSpec, TrainSpec
from nucleate.studies.descent import run, size
from nucleate.studies.descent.sparse import masks_at, phases
from nucleate.studies.descent.tables import along_width

SPARSE = DescentSpec(
    recipe="nets",
    seeds=(0, 1),
    data=DataSpec(train_size=100, label_noise=0.2),
    model=ModelSpec(name="mlp", depth=1),
    train=TrainSpec(
        optimizer="adam", lr=2e-2, weight_decay=0.0, schedule="constant", epochs=40, batch_size=50, threads=1
    ),
    widths=(16,),
    points=2,
    densities=(0.5, 0.1),
    epsilon=0.1,
)


def test_pruned_networks_keep_the_largest_weights_and_go_back_to_their_start(tmp_path: Path) -> None:
    assert size(SPARSE) == 40 * 2 * (1 + 2 * 3)
    done = run(SPARSE, root=tmp_path)
    dense, half = (done.tensors(f"weights-{part:04d}") for part in (1, 2))
    for seed in SPARSE.seeds:
        own = [name for name in dense if f"seed {seed}, " in name and name.endswith("weight")]
        before, after = (np.concatenate([t[name].ravel() for name in own]) for t in (dense, half))
        kept = after != 0
        assert kept.sum() == round(0.5 * len(kept))
        assert abs(before[kept]).min() > abs(before[~kept]).max()
    rows = done.select(metric="error", split="test", epoch=40)
    found = {(r["arm"], r["density"], r["parameters"]) for r in rows}
    controlled = {(arm, d, 26 + round(d * 1184)) for arm in ("ticket", "random", "reinit") for d in (0.5, 0.1)}
    assert found == {("ticket", 1.0, 1210), *controlled}
    whole = replace(SPARSE, densities=(), epsilon=0.0)
    alone = run(whole, root=tmp_path).select(metric="error", split="test", epoch=40)
    assert [r["value"] for r in alone] == [r["value"] for r in rows if r["density"] == 1]
    # At the start a ticket is the whole network's start with weights missing, and a control of fresh weights is not.
    moved = {(r["arm"], r["density"]): r["value"] for r in done.select(metric="distance", epoch=0)}
    assert set(moved.values()) == {0.0}
    norm = {(r["arm"], r["density"], r["seed"]): r["value"] for r in done.select(metric="norm", epoch=0)}
    assert norm["ticket", 0.5, 0] < norm["ticket", 1.0, 0] and norm["ticket", 0.5, 0] != norm["reinit", 0.5, 0]
    attacked = done.select(metric="pgd_accuracy")
    assert len(attacked) == 14 and all(0 <= r["value"] <= 1 for r in attacked)
    classes = done.tensors("predicted-0002")["width 16, samples 100, noise 0.2, none, density 0.5, ticket, attacked"]
    right = (classes == done.tensors("test")["labels"][: classes.shape[1]]).mean(1)
    assert right.tolist() == [r["value"] for r in attacked if (r["arm"], r["density"]) == ("ticket", 0.5)]


def test_a_network_that_lost_everything_is_measured_too(tmp_path: Path) -> None:
    train = replace(SPARSE.train, epochs=2)
    done = run(replace(SPARSE, densities=(1e-6,), controls=(), landscape=True, train=train), root=tmp_path)
    errors = [r["value"] for r in done.select(metric="error", split="test", density=1e-6, epoch=2)]
    assert len(errors) == 2 and min(errors) > 0.8
    assert {r["parameters"] for r in done.select(density=1e-6)} == {26}, "the biases"
    assert "like the whole network down to" in along_width(done)


def test_random_masks_have_the_layer_densities_of_the_ticket() -> None:
    model = build(ModelSpec(name="mlp", depth=1, width=16), (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    trained = dict(model.state_dict())
    ticket, random = (masks_at(model, 0.2, arm, trained, seed=3) for arm in ("ticket", "random"))
    assert ticket.densities == random.densities and ticket.kept == round(0.2 * ticket.count)
    assert any(not torch.equal(ticket[name], random[name]) for name in ticket)
    sparser = {name: trained[name] * ticket[name] for name in ticket}
    nested = masks_at(model, 0.1, "ticket", sparser, seed=3)
    assert all(bool((nested[name] <= ticket[name]).all()) for name in ticket)


def test_phases_of_a_curve_by_hand() -> None:
    """Light, critical, sweet, collapsed; no bump where an error falls by less than a point or only rises."""

    def found(*seeds: tuple[float, ...]) -> tuple[float, ...]:
        return astuple(phases(dict(zip((1.0, 0.5, 0.2, 0.1, 0.05), zip(*seeds, strict=True), strict=False))))

    assert found((0.3, 0.305, 0.38, 0.2, 0.6)) == (0.5, 0.2, 0.1)
    only_rises = found((0.1, 0.105, 0.2))
    assert only_rises[0] == 0.5 and math.isnan(only_rises[1]) and math.isnan(only_rises[2])
    assert found((0.3, 0.2, 0.1)) == (1.0, 1.0, 0.2)
    # A rise of two points: one that seeds agree on is no longer light, one that is lost among them is.
    assert found((0.30, 0.32, 0.4, 0.2), (0.40, 0.421, 0.5, 0.3), (0.50, 0.519, 0.6, 0.4))[0] == 1.0
    assert found((0.30, 0.42, 0.5, 0.2), (0.40, 0.44, 0.6, 0.3), (0.50, 0.40, 0.7, 0.4))[0] == 0.5


def test_densities_from_the_command_line_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["descent", "digits-sparsity", "--data.train-size", "60", "--seeds", "5", "6", "--train.epochs", "3"]
    more = ["--densities", "0.3", "0.1", "--widths", "8", "--train.threads", "1", "--out", str(tmp_path), "--jobs", "1"]
    assert main([*command, *more]) == 0
    out = capsys.readouterr().out
    assert "random" in out and "reinit" in out and "like the whole network down to" in out
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    text = (folder / "report.html").read_text()
    assert "Double descent along sparsity" in text and "Accuracy under PGD" in text
    assert "Double descent along width" not in text, "there is one width only"
    assert [p.name for p in figures(Run(folder), tmp_path / "figures", ("png",))] == ["descent-sparsity.png"]
    assert main([*command, "--densities", "1.5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
