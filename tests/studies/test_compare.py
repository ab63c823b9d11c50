"""A comparison of pruning methods: exact levels, controls, resume, the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nucleate.cli import main
from nucleate.models import build
from nucleate.probes.macs import layer_macs, remaining_macs
from nucleate.recipes.compare import recipe
from nucleate.runs import Run, find_runs
from nucleate.spec import CompareSpec, ModelSpec
from nucleate.studies import compare, dense
from nucleate.studies.cells import run_specs


def short(method: str = "magnitude", **prune: object) -> CompareSpec:
    spec = recipe("digits-mlp")
    return replace(
        spec,
        model=ModelSpec(width=32, depth=2),
        train=replace(spec.train, epochs=4),
        prune=replace(spec.prune, method=method, epochs=1, examples=64, **prune),
        densities=(0.5, 0.1),
        robustness=20,
    )


def value(run: Run, metric: str, level: int, split: str = "test", layer: str = "") -> float:
    (row,) = run.select(metric=metric, epoch=level, split=split, layer=layer)
    return float(row["value"])


def test_levels_are_exact_and_share_one_dense_network(tmp_path: Path) -> None:
    runs = run_specs([short(), short("dense"), short("random")], root=tmp_path, progress=False)
    assert len(list(tmp_path.glob("dense-*"))) == 1
    magnitude, control, _ = runs
    parent = next(r for r in find_runs(tmp_path) if r.spec["study"] == "dense")
    assert {value(r, "accuracy", 0) for r in runs} == {value(parent, "accuracy", parent.spec["train"]["epochs"])}
    prunable = 64 * 32 + 32 * 32
    rows = magnitude.select(metric="accuracy", split="test")
    assert [r["kept"] for r in rows] == [1.0, round(0.5 * prunable) / prunable, round(0.1 * prunable) / prunable]
    assert value(control, "macs", 2, "") == prunable + 320
    kept = [value(magnitude, "density", 2, "", f"hidden.{i}.linear.weight") for i in (0, 1)]
    assert value(magnitude, "macs", 2, "") == pytest.approx(64 * 32 * kept[0] + 32 * 32 * kept[1] + 320)
    parameters = prunable + 320 + 32 + 32 + 10
    assert value(magnitude, "bytes", 2, "") == 4 * (parameters - prunable + round(0.1 * prunable)) + prunable / 8
    last = magnitude.tensors("level-02")
    assert last["first_layer_kept"].sum() == round(kept[0] * 64 * 32)


def test_pruned_weights_stay_zero_through_the_further_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = compare.Levels._store

    def store(self: compare.Levels, level: int, *rest: object) -> None:
        if self.masks is not None:
            own = dict(self.model.named_parameters())
            seen.append(all(bool((own[n][m == 0] == 0).all()) for n, m in self.masks.items()))
            live = torch.cat([own[n][m == 1] for n, m in self.masks.items()])
            seen.append(bool((live != 0).any()))
        original(self, level, *rest)

    monkeypatch.setattr(compare.Levels, "_store", store)
    compare.run(short(schedule="iterative"), root=tmp_path)
    assert seen == [True] * 4


@pytest.mark.parametrize("schedule", ["one-shot", "iterative"])
def test_a_run_stopped_after_a_level_goes_on_to_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    spec = short("snip", schedule=schedule)
    whole = compare.run(spec, root=tmp_path / "whole")
    dense.run(compare.parent(spec), root=tmp_path / "cut")
    original = compare.Levels._level

    def stop(self: compare.Levels, level: int, density: float) -> None:
        if level == 2:
            raise KeyboardInterrupt
        original(self, level, density)

    with monkeypatch.context() as patch:
        patch.setattr(compare.Levels, "_level", stop)
        with pytest.raises(KeyboardInterrupt):
            compare.run(spec, root=tmp_path / "cut")
    resumed = compare.run(spec, root=tmp_path / "cut")
    assert resumed.records == whole.records


def test_a_language_model_is_compared_by_bytes(tmp_path: Path) -> None:
    spec = recipe("bytes-transformer")
    spec = replace(
        spec,
        data=replace(spec.data, context=16, train_size=64, test_size=16),
        model=ModelSpec(name="transformer", width=32, depth=1),
        train=replace(spec.train, epochs=1),
        prune=replace(spec.prune, method="wanda", examples=16),
        densities=(0.5,),
    )
    done = compare.run(spec, root=tmp_path)
    assert value(done, "loss", 0) > 0 and 0 <= value(done, "accuracy", 1) <= 1
    assert not done.select(metric="pgd_accuracy")
    assert done.tensors("level-01")["test_correct"].shape == (16,)


def test_multiply_adds_against_hand_counts() -> None:
    net = build(ModelSpec(name="convnet", width=4, depth=2), (1, 8, 8), 10, generator=torch.Generator())
    macs = layer_macs(net, torch.zeros(3, 1, 8, 8))
    assert macs == {
        "hidden.0.conv.weight": 64 * 9 * 4,
        "hidden.1.conv.weight": 64 * 9 * 4 * 4,
        "classifier.weight": 40,
    }
    assert remaining_macs(macs, {"hidden.1.conv.weight": 0.25}) == 64 * 9 * (4 + 4) + 40


def test_the_command_prints_a_table_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--model.width=16", "--train.epochs=2", "--prune.epochs=0", "--robustness=0", "--jobs=1"]
    asked = ["--densities", "0.5", "0.1", "--seeds", "0", "--methods", "dense", "magnitude"]
    assert main(["compare", "digits-mlp", *small, *asked]) == 0
    shown = capsys.readouterr().out
    assert "magnitude" in shown and "0.1" in shown
    assert "Pruning methods compared" in Path("runs/compare-digits-mlp.html").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--methods", "magnitud"], "did you mean magnitude"),
        (["--densities", "0.1", "0.5"], "must fall"),
        (["--densities", "1.5"], "density"),
        (["--prune.epochs", "-1"], "prune.epochs"),
        (["--methods", "absent.module:f"], "absent"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "digits-mlp", *args]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("records.jsonl"))
