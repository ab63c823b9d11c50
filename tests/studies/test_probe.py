"""`nucleate probe`: somebody's model, weights and data from outside, one clear line for what does not fit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nucleate.cli import main
from nucleate.data import load
from nucleate.probes.layers import probe
from nucleate.runs import find_runs
from nucleate.spec import DataSpec
from nucleate.studies.probe import numbered

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(inplace=True), nn.Linear(width, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def net():
    return Net()


def positional(shape, classes):
    return wide(shape, classes)


def wide(input_shape, num_classes):
    assert input_shape == (1, 8, 8) and num_classes == 10
    return Net(20)


def broken():
    raise RuntimeError("no luck")


def text():
    return "no module"


def image():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 10))
"""
DATA = ["--train-size", "200", "--test-size", "100", "--subsample", "80", "--picture", "40"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "probed_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def net(seed: int = 0) -> nn.Module:
    scope: dict[str, object] = {"__name__": "probed"}
    exec(NETS, scope)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scope["net"]()  # type: ignore[operator, no-any-return]


def test_one_checkpoint_gives_a_run_a_table_and_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = net()
    save_file(model.state_dict(), here / "w.safetensors")
    assert main(["probe", "--model", "probed_nets:net", "--weights", "w.safetensors", *DATA]) == 0
    shown = capsys.readouterr()
    assert "penultimate" in shown.out and "project" in shown.out and "probe train: 100%" in shown.err
    (run,) = find_runs(here / "runs")
    assert run.path.name.startswith("probe-net-") and run.done
    assert (run.path / "report.html").stat().st_size > 1e6
    data = load(DataSpec(train_size=200, test_size=100))
    splits = [
        list(zip(x.split(512), y.split(512), strict=True))
        for x, y in ((data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels))
    ]
    want = probe(model, splits[0], test_batches=splits[1], subsample=80)
    rows = run.records
    assert run.env["layers"] == want.layers == ["input", "body.2", "penultimate", "logits"]
    assert len(rows) == len(want)
    for row, other in zip(rows, want, strict=True):
        assert row | other | {"value": 0} == row | {"value": 0} and row["checkpoint"] == "w.safetensors"
        assert row["value"] == pytest.approx(other["value"], nan_ok=True)
    assert run.tensors("epoch-000000")["pca:penultimate"].shape == (40, 8)
    # The same command again finds the run.
    assert main(["probe", "--model", "probed_nets:net", "--weights", "w.safetensors", *DATA, "--no-report"]) == 0
    assert len(find_runs(here / "runs")) == 1
    # Other weights under the same name are another run.
    save_file(net(1).state_dict(), here / "w.safetensors")
    assert main(["probe", "--model", "probed_nets:net", "--weights", "w.safetensors", *DATA, "--no-report"]) == 0
    assert len(find_runs(here / "runs")) == 2


def test_a_folder_of_checkpoints_is_a_sweep_in_the_order_of_their_numbers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "sweep").mkdir()
    for number in (2, 10, 1):
        save_file(net(number).state_dict(), here / f"sweep/epoch{number}.safetensors")
    command = ["probe", "--model", "probed_nets:net", "--weights", "sweep", "--layers", "body.*", "penultimate", *DATA]
    assert main([*command, "--no-report"]) == 0
    (run,) = find_runs(here / "runs")
    assert list(dict.fromkeys(r["epoch"] for r in run.records)) == [1, 2, 10]
    assert run.tensor_names == ["epoch-000001", "epoch-000002", "epoch-000010"]
    assert {r["layer"] for r in run.records} == {"", "body.0", "body.1", "body.2", "body.3", "penultimate"}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "10"]
    # A sweep that was cut short goes on, and ends with the same records.
    whole, before = (run.path / "records.jsonl").read_bytes(), run.records
    (run.path / "DONE").unlink()
    (run.path / "checkpoints").mkdir()
    first = b"".join(line for line in whole.splitlines(keepends=True) if b'"epoch": 1,' in line)
    (run.path / "checkpoints" / "last").write_bytes(len(first).to_bytes(8, "little") + b'{"probed": 1}')
    assert main([*command, "--no-report"]) == 0
    assert run.done and len(run.records) == len(before)
    for row, other in zip(run.records, before, strict=True):
        assert row | {"value": 0} == other | {"value": 0}
        # A network in other memory rounds differently.
        assert row["value"] == pytest.approx(other["value"], rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["wide", "positional"])
def test_a_function_that_asks_for_shape_and_classes_gets_them(name: str, here: Path) -> None:
    assert main(["probe", "--model", f"probed_nets:{name}", *DATA, "--no-report", "--layers", "penultimate"]) == 0
    (run,) = find_runs(here / "runs")
    assert run.env["parameters"] == 64 * 20 + 20 + 20 * 8 + 8 + 80 + 10
    values = {(r["metric"], r["split"]): r["value"] for r in run.records if r["layer"]}
    assert math.isfinite(values["nc1", "train"]) and math.isfinite(values["nc4", "test"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name the network: --model package.module:function"),
        (["--model", "net"], "write package.module:function"),
        (["--model", "probed_nets:nets"], "has no 'nets'"),
        (["--model", "probed_nets:broken"], "probed_nets:broken failed: RuntimeError: no luck"),
        (["--model", "probed_nets:text"], "made a str, not a torch.nn.Module"),
        (["--model", "probed_nets:image"], "does not take inputs of shape (1, 8, 8)"),
        (
            ["--model", "probed_nets:net", "--weights", "absent.safetensors"],
            "there is no file or folder of weights absent",
        ),
        (["--model", "probed_nets:net", "--weights", "empty"], "the folder empty holds no weights"),
        (
            ["--model", "probed_nets:wide", "--weights", "w.pt"],
            "'body.1.weight' is (12, 64) in w.pt, (20, 64)",
        ),
        (
            ["--model", "probed_nets:net", "--weights", "part.pt"],
            "as 'head.bias'; 1 of the file's are not in the model, as 'tail'",
        ),
        (["--model", "probed_nets:net", "--weights", "cut.safetensors"], "cut.safetensors is damaged"),
        (["--model", "probed_nets:net", "--weights", "cut.pt"], "cut.pt is damaged"),
        (["--model", "probed_nets:net", "--weights", "code.pt"], "code.pt holds more than tensors"),
        (["--model", "probed_nets:net", "--weights", "list.pt"], "list.pt holds no state_dict"),
        (["--model", "probed_nets:net", "--layers", "bodi.1"], "no module matches 'bodi.1'; nearest: body.1"),
        (["--model", "probed_nets:net", "--pool", "max"], "pool"),
        (["--model", "probed_nets:net", "--classifier", "body.0"], "has no weight"),
        (["--model", "probed_nets:net", "--data", "nowhere"], "nowhere"),
        (["--model", "probed_nets:net", "--device", "cuda:99"], "device is 'cuda:99', but this computer has cpu"),
        (["--model", "probed_nets:net", "--k", "0"], "k must be at least 1"),
        (["--model", "probed_nets:net", "--batch-size", "0"], "batch_size must be at least 1"),
        (["--model", "probed_nets:net", "--convention", "papyan"], "papyan"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    args: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    state = net().state_dict()
    torch.save(state, here / "w.pt")
    torch.save({k: v for k, v in state.items() if k != "head.bias"} | {"tail": torch.ones(1)}, here / "part.pt")
    torch.save([1, 2], here / "list.pt")
    torch.save({"state_dict": Path("x")}, here / "code.pt")
    save_file(state, here / "whole.safetensors")
    (here / "cut.safetensors").write_bytes((here / "whole.safetensors").read_bytes()[:-100])
    (here / "cut.pt").write_bytes((here / "w.pt").read_bytes()[:200])
    capsys.readouterr()
    assert main(["probe", *args, *DATA]) == 2
    out = capsys.readouterr()
    lines = [line for line in out.err.splitlines() if line.startswith("nucleate: ")]
    assert len(lines) == 1 and words in lines[0], out.err
    assert "Traceback" not in out.err
    assert not list(here.rglob("records.jsonl"))


def test_checkpoints_without_numbers_go_by_name(tmp_path: Path) -> None:
    for name in ("b.pt", "a.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert [(n, p.name) for n, p in numbered(str(tmp_path)) if p] == [(0, "a.pth"), (1, "b.pt")]
    (tmp_path / "step-20.pt").touch()
    assert [n for n, _ in numbered(str(tmp_path))] == [0, 1, 2]
    assert numbered(str(tmp_path / "step-20.pt")) == [(0, tmp_path / "step-20.pt")]
