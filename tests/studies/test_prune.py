"""`nucleate prune`: a model of one's own in, plain weights out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nucleate.cli import main
from nucleate.recipes.compare import recipe
from nucleate.runs import Run
from nucleate.spec import DenseSpec, ModelSpec, PruneRunSpec, PruneSpec
from nucleate.studies import dense, prune

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 24), nn.Linear(24, 24), nn.Linear(24, 10)
    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())

def make(input_shape, num_classes):
    return Net()

def simple():
    return Net()

def raises(*args):
    raise KeyError("my own bug")

def nothing(*args):
    return None

def lists(given):
    return {name: [1.0] for name in given.weights}

def halves(outputs, labels):
    return float((outputs.argmax(1) == labels).double().mean()) / 2
"""

PLAIN = """
import sys, torch
sys.path.insert(0, "."); import own
from safetensors.torch import load_file
net = own.make(None, None)
net.load_state_dict(load_file(sys.argv[1]))
print(int((net.first.weight == 0).sum() + (net.second.weight == 0).sum()), "nucleate" in sys.modules)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DenseSpec]:
    root = tmp_path_factory.mktemp("dense")
    spec = recipe("digits-mlp")
    own = DenseSpec(data=spec.data, model=ModelSpec(width=32, depth=2), train=replace(spec.train, epochs=15))
    return dense.run(own, root=root).path / "tensors" / "final.safetensors", own


def asked(trained: tuple[Path, DenseSpec], **fields: object) -> PruneRunSpec:
    path, own = trained
    base = PruneRunSpec(weights=str(path), data=own.data, model=own.model, train=replace(own.train, threads=1))
    return replace(base, **fields)


def test_the_density_asked_for_is_what_comes(trained: tuple[Path, DenseSpec], tmp_path: Path) -> None:
    done = prune.run(asked(trained, density=0.25, prune=PruneSpec(epochs=1)), root=tmp_path)
    weights, masks = (load_file(done.path / "tensors" / f"{n}.safetensors") for n in ("weights", "masks"))
    prunable = 64 * 32 + 32 * 32
    assert sum(int(m.sum()) for m in masks.values()) == round(0.25 * prunable)
    assert all(bool((weights[name][mask == 0] == 0).all()) for name, mask in masks.items())
    record = json.loads((done.path / "record.json").read_text())
    assert record["kept"] == round(0.25 * prunable) and record["method"] == "magnitude"
    assert "25.00%" in (done.path / "card.md").read_text()


def test_a_largest_loss_is_kept_on_validation_points(
    trained: tuple[Path, DenseSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = asked(trained, largest_loss=0.02)
    done = prune.run(spec, root=tmp_path)
    walked = {r["density"]: r["value"] for r in done.select(split="validation")}
    assert len(walked) == prune.STEPS
    kept = max(r["density"] for r in done.select(metric="accuracy", split="test") if r["density"] < 1)
    reference = max(walked.values())
    assert any(abs(d - kept) < 1e-3 and reference - v <= 0.02 + 1e-9 for d, v in walked.items())
    by_chance = prune.run(replace(spec, prune=PruneSpec(method="random")), root=tmp_path)
    worse = max(r["density"] for r in by_chance.select(metric="accuracy", split="test") if r["density"] < 1)
    assert worse > kept
    # The first density alone: 3 % of the weights, drawn at random.
    monkeypatch.setattr(prune, "STEPS", 1)
    with pytest.raises(ValueError, match="no density that was tried"):
        prune.run(replace(spec, largest_loss=0.0, prune=PruneSpec(method="random")), root=tmp_path)


def test_a_search_that_was_stopped_goes_on(
    trained: tuple[Path, DenseSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = asked(trained, largest_loss=0.05)
    whole = prune.run(spec, root=tmp_path / "whole")
    calls: list[float] = []
    original = prune.Search.at

    def at(self: prune.Search, density: float) -> prune.Outcome:
        calls.append(density)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, density)

    monkeypatch.setattr(prune.Search, "at", at)
    with pytest.raises(KeyboardInterrupt):
        prune.run(spec, root=tmp_path / "cut")
    resumed = prune.run(spec, root=tmp_path / "cut")
    assert len(calls) == 4 + prune.STEPS - 3 + 1
    assert resumed.records == whole.records
    assert (resumed.path / "card.md").read_text() == (whole.path / "card.md").read_text()


def test_a_model_of_ones_own_loads_again_without_nucleate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(own.make(None, None).state_dict(), "own.pt")
    args = ["--model", "own:make", "--weights", "own.pt", "--data", "digits", "--metric", "own:halves"]
    assert main(["prune", *args, "--density", "0.1", "--method=magnitude", "--no-report"]) == 0
    shown = capsys.readouterr().out
    assert "own:halves" in shown and "skipped: output layer" in shown
    (weights,) = Path("runs").rglob("weights.safetensors")
    out = subprocess.run([sys.executable, "-c", PLAIN, str(weights)], capture_output=True, text=True, check=True).stdout
    prunable = 64 * 24 + 24 * 24
    assert out.split() == [str(prunable - round(0.1 * prunable)), "False"]


def test_the_report_shows_the_layers(trained: tuple[Path, DenseSpec], tmp_path: Path) -> None:
    from nucleate.report import page

    done = prune.run(asked(trained, density=0.5), root=tmp_path)
    text = page([Run(done.path)], tmp_path / "page.html").read_text()
    assert "The pruned network" in text and "hidden.0.linear.weight" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--density", "0.1"], "name the trained weights"),
        (["--weights", "absent.safetensors", "--density", "0.1"], "absent.safetensors"),
        (["--weights", "text.pt", "--density", "0.1"], "text.pt is damaged or no file of weights"),
        (["--weights", "w.safetensors", "--density", "0.1", "--train.device", "cuda:99"], "this computer has cpu"),
        (["--weights", "w.safetensors"], "give either --density"),
        (["--weights", "w.safetensors", "--density", "0"], "density"),
        (["--weights", "w.safetensors", "--density", "0.1", "--method", "magnitute"], "did you mean magnitude"),
        (["--weights", "w.safetensors", "--density", "0.1", "--layers", "hiden*"], "no layer matches"),
        (["--weights", "w.safetensors", "--density", "0.1", "--model.width", "8"], "do not fit"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str],
    words: str,
    trained: tuple[Path, DenseSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(trained[0].read_bytes())
    (tmp_path / "text.pt").write_text("hello\n")
    assert main(["prune", "--model.width", "32", "--model.depth", "2", *args]) == 2
    out, shown = capsys.readouterr()
    assert shown.startswith("nucleate: ") and words in shown and "Traceback" not in shown
    assert not out and not list(tmp_path.rglob("records.jsonl"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "own:raises"], "own:raises failed: KeyError: 'my own bug'"),
        (["--method", "own:nothing"], "nothing must give a tensor for each prunable parameter, not a NoneType"),
        (["--method", "own:lists"], "lists scores first.weight with a list, not a tensor"),
        (["--metric", "own:raises"], "own:raises failed: KeyError: 'my own bug'"),
        (["--metric", "own:nothing"], "own:nothing must give a number, not a NoneType"),
    ],
)
def test_a_mistake_in_ones_own_function_is_one_line(
    args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    assert main(["prune", "--model", "own:simple", "--weights", own_weights(tmp_path), "--density", "0.1", *args]) == 2
    shown = capsys.readouterr().err
    (line,) = [line for line in shown.splitlines() if line.startswith("nucleate: ")]
    assert words in line and "Traceback" not in shown


def own_weights(folder: Path) -> str:
    """Weights of a new network of OWN's."""
    from nucleate.functions import find_function

    torch.save(find_function("own:simple")().state_dict(), folder / "own.pt")
    return str(folder / "own.pt")
