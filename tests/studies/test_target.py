"""Targets of `nucleate prune`, rewinding there, and a model of `transformers` from a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nucleate.cli import main
from nucleate.compact.files import load_sparse
from nucleate.recipes.compare import recipe
from nucleate.report import page
from nucleate.runs import Run
from nucleate.spec import DenseSpec, ModelSpec, PruneRunSpec, PruneSpec
from nucleate.studies import dense, prune
from nucleate.studies.frontier import Target, first_that, last_that, parse_target, path
from nucleate.studies.target import Towards


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DenseSpec]:
    root = tmp_path_factory.mktemp("dense")
    spec = recipe("digits-mlp")
    train = replace(spec.train, epochs=12)
    own = DenseSpec(data=spec.data, model=ModelSpec(width=32, depth=2), train=train, keep=(10,))
    return dense.run(own, root=root).path / "tensors", own


@pytest.fixture(autouse=True)
def counted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that are counts of weights, so that nothing depends on the machine: blocks cost a third of singles."""

    class Layer:
        def __init__(self, name: str, left: int, whole: int, form: float) -> None:
            self.name, self.seconds = name, {"dense": whole * 1e-6, "sparse": left * form * 1e-6}

    class Report:
        chosen = "sparse"

        def __init__(self, layers: list[Layer]) -> None:
            self.layers = layers
            self.seconds = {"as it was": sum(la.seconds["dense"] for la in layers)}
            self.seconds["sparse"] = sum(min(la.seconds.values()) for la in layers)

    def measured(self: Towards, masks: dict[str, torch.Tensor] | None) -> Report:
        layers = []
        for i in (0, 1):
            w = self.model.get_parameter(f"hidden.{i}.linear.weight")
            blocks = bool((w.view(8, 4, -1) != 0).any(1).sum() * 4 == (w != 0).sum())
            layers.append(Layer(f"hidden.{i}.linear", int((w != 0).sum()), w.numel(), 1.0 if blocks else 3.0))
        return Report(layers)

    monkeypatch.setattr(Towards, "_measured", measured)


def asked(trained: tuple[Path, DenseSpec], **fields: object) -> PruneRunSpec:
    folder, own = trained
    base = PruneRunSpec(weights=str(folder / "final.safetensors"), data=own.data, model=own.model, train=own.train)
    return replace(base, **fields)


def numbers(run: Run) -> list[dict[str, float]]:
    found: dict[tuple[str, int], dict[str, float]] = {}
    for r in run.records:
        if r["metric"].startswith("target_"):
            found.setdefault((r["tried"], r["path"]), {})[r["metric"].removeprefix("target_")] = r["value"]
    return list(found.values())


def test_a_size_is_that_of_the_file(trained: tuple[Path, DenseSpec], tmp_path: Path) -> None:
    ticks: list[int] = []
    spec = asked(trained, target="size=6kB")
    done = prune.run(spec, root=tmp_path, tick=ticks.append)
    assert sum(ticks) == prune.size(spec)
    assert ticks[:4] == [1] * 4, "the bar moves while a candidate is searched"
    file = done.path / "sparse.safetensors"
    weights = load_file(done.path / "tensors" / "weights.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in load_sparse(file).items())
    met = [n for n in numbers(done) if n["size"] <= 6000]
    assert file.stat().st_size in {n["size"] for n in met}
    accuracy = {r["density"]: r["value"] for r in done.select(metric="accuracy", split="test")}
    best = min(n["loss"] for n in met)
    row = (done.path / "card.md").read_text().split("## The target, size=6kB")[1].splitlines()[6]
    assert f"{file.stat().st_size:,} bytes" in row
    assert len({r["tried"] for r in done.select(metric="target_size")}) == 4
    assert accuracy[1.0] > 0.9 and best < 0.3


def test_speed_prefers_the_shape_that_is_fast_and_loss_the_fastest_within_it(
    trained: tuple[Path, DenseSpec], tmp_path: Path
) -> None:
    done = prune.run(asked(trained, target="loss=0.2", methods=("magnitude",)), root=tmp_path)
    within = [n for n in numbers(done) if n["loss"] <= 0.2]
    record = json.loads((done.path / "record.json").read_text())
    assert within and record["method"] == "magnitude"
    assert set(record["scope"]) == {"hidden.0.linear.weight", "hidden.1.linear.weight"}
    assert all(abs(record["layers"][n] - share) < 2e-3 for n, share in record["scope"].items())
    assert min(n["time"] for n in within) < max(n["time"] for n in numbers(done))
    fast = prune.run(
        asked(trained, target="speedup=8", methods=("magnitude",), shapes=("weight", "block:4x1")), root=tmp_path
    )
    reached = json.loads((fast.path / "record.json").read_text())
    assert sum(n["speedup"] >= 8 for n in numbers(fast)) >= 1 and reached["density"] < 0.5
    text = page([fast], tmp_path / "page.html").read_text()
    assert "The frontier that was walked" in text and "Loss against speed-up" in text


def test_a_search_towards_a_target_goes_on_where_it_was_stopped(
    trained: tuple[Path, DenseSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = asked(trained, target="loss=0.05", methods=("magnitude",), shapes=("weight",))
    whole = prune.run(spec, root=tmp_path / "whole")
    original = prune.Search.at
    calls: list[float] = []

    def at(self: prune.Search, density: float, **how: object) -> prune.Outcome:
        calls.append(density)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, density, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(prune.Search, "at", at)
    with pytest.raises(KeyboardInterrupt):
        prune.run(spec, root=tmp_path / "cut")
    resumed = prune.run(spec, root=tmp_path / "cut")
    assert resumed.records == whole.records
    assert len(calls) == len(numbers(whole)) + 1 + 1


def test_what_cannot_be_reached_is_said_with_the_closest(trained: tuple[Path, DenseSpec], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the closest has size"):
        prune.run(asked(trained, target="size=1kB", methods=("magnitude",), shapes=("weight",)), root=tmp_path)


def test_a_path_gives_up_first_where_most_is_gained_for_least() -> None:
    costs = {"a": {1.0: 10.0, 0.5: 12.0, 0.1: 2.0}, "b": {1.0: 10.0, 0.5: 5.0, 0.1: 1.0}, "c": {1.0: 0.0}}
    losses = {"a": {1.0: 0.0, 0.5: 0.0, 0.1: 0.1}, "b": {1.0: 0.0, 0.5: 0.0, 0.1: 1.0}, "c": {1.0: 0.0}}
    steps = path(costs, losses, floor=0.01)
    # b halves for nothing; a jumps over 0.5, which is slower than dense; b's rest costs most.
    assert [(s["a"], s["b"]) for s in steps] == [(1.0, 1.0), (1.0, 0.5), (0.1, 0.5), (0.1, 0.1)]


@pytest.mark.parametrize("edge", range(8))
def test_bisection_finds_the_edge(edge: int) -> None:
    assert first_that(lambda i: i >= edge, 7) == (edge if edge < 7 else None)
    assert last_that(lambda i: i <= edge, 7) == min(edge, 6)


@pytest.mark.parametrize(
    "text", ["", "size", "size=3", "time=1", "speedup=3x", "loss=-1", "size=0kB", "loss=1ms", "time=1.2.3s"]
)
def test_a_target_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="target must be like"):
        parse_target(text)


def test_targets() -> None:
    assert parse_target("size=1.5MB") == Target("size", 1.5e6)
    assert parse_target("loss=0") == Target("loss", 0.0)
    assert parse_target("speedup=3").met({"speedup": 3.0}) and not parse_target("time=2us").met({"time": 3e-6})


def test_rewinding_needs_the_early_weights(trained: tuple[Path, DenseSpec], tmp_path: Path) -> None:
    spec = asked(trained, density=0.2, prune=PruneSpec(after="rewind", epochs=2))
    with pytest.raises(ValueError, match="--early"):
        prune.run(spec, root=tmp_path)
    done = prune.run(replace(spec, early=str(trained[0] / "epoch-000010.safetensors")), root=tmp_path)
    assert "trained on for 2 epochs (rewind)" in (done.path / "card.md").read_text()
    other = prune.run(replace(spec, prune=PruneSpec(after="lr-rewind", epochs=2)), root=tmp_path)
    a, b = (load_file(r.path / "tensors" / "weights.safetensors") for r in (done, other))
    assert any(not torch.equal(a[k], b[k]) for k in a)


def test_a_folder_of_transformers_comes_back_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, n_positions=16, vocab_size=256, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained("small")
    args = ["--data", "python-source", "--data.context", "16", "--data.train-size", "64", "--data.test-size", "32"]
    rest = ["--density", "0.5", "--method", "wanda", "--metric", "loss", "--prune.examples", "32", "--no-report"]
    assert main(["prune", "--model", "small", *args, *rest]) == 0
    assert "loss on 32 held-out points" in capsys.readouterr().out
    (folder,) = Path("runs").rglob("model")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    block = model.transformer.h[0]
    zeros = [int((m.weight == 0).sum()) / m.weight.numel() for m in (block.attn.c_attn, block.mlp.c_fc)]
    assert zeros == [0.5, 0.5]
    (run,) = (Run(p.parent) for p in Path("runs").rglob("DONE"))
    # Twelve times the squared width at each of 16 positions, half of it gone, and the output layer.
    macs = sorted(r["value"] for r in run.select(metric="macs"))
    assert macs == [16 * (6 * 32**2 + 32 * 256), 16 * (12 * 32**2 + 32 * 256)]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text('{"architectures": ["GPT2Model"]}')
    assert main(["prune", "--model", "none", *args, *rest]) == 2
    assert "has no logits" in capsys.readouterr().err
