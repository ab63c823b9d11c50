"""Bad input from outside, by the command line: one clear line, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nucleate.cli import main
from nucleate.runs import store

TINY = [
    "--train.epochs",
    "1",
    "--measure.points",
    "2",
    "--measure.robustness",
    "0",
    "--model.width",
    "8",
    "--no-report",
]
QUICK = ["collapse", *TINY, "--data.train-size", "50", "--data.test-size", "20"]


@pytest.fixture
def fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], str]:
    """Run a command that must fail, in an empty folder, and return its one line."""
    monkeypatch.chdir(tmp_path)

    def run(args: list[str]) -> str:
        before = snapshot(tmp_path)
        assert main(args) == 2
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("nucleate: ")]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        assert "\x1b" not in lines[0]
        assert snapshot(tmp_path) == before, "something was left behind"
        return lines[0]

    return run


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder but locks and what Python caches."""
    files = (p for p in root.rglob("*") if p.is_file() and p.name != ".lock" and "__pycache__" not in p.parts)
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as IDX."""
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_folder(folder: Path, **changed: bytes) -> Path:
    """Forty images and labels as MNIST lays them out, gzipped; `changed` replaces the content of a file."""
    folder.mkdir()
    images, labels = np.zeros((40, 4, 4), np.uint8), np.arange(40, dtype=np.uint8) % 4
    for split in ("train", "t10k"):
        for kind, rows in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{split}-{kind}-ubyte.gz"
            content = changed.get(f"{split}_{kind[:6]}", gzip.compress(idx(rows)))
            (folder / name).write_bytes(content)
    return folder


IMAGES = np.zeros((40, 4, 4), np.uint8)
IDX = {
    "bad magic": {"train_images": gzip.compress(b"\x01\x02\x03\x04" + idx(IMAGES)[4:])},
    "truncated idx": {"train_images": gzip.compress(idx(IMAGES)[:-100])},
    "truncated gzip": {"train_images": gzip.compress(idx(np.arange(640, dtype=np.uint8).reshape(40, 4, 4)))[:-20]},
    "not gzip": {"train_images": b"<html>404 not found</html>"},
    "empty": {"train_images": b""},
    "too few labels": {"train_labels": gzip.compress(idx(np.zeros(39, np.uint8)))},
    "images where labels belong": {"train_labels": gzip.compress(idx(IMAGES))},
    "test images of another size": {"t10k_images": gzip.compress(idx(np.zeros((40, 5, 5), np.uint8)))},
    "header that promises more than memory": {"train_images": gzip.compress(idx(IMAGES)[:4] + b"\x7f\xff\xff\xff" * 3)},
}


@pytest.mark.parametrize("case", sorted(IDX))
def test_damaged_idx(case: str, fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "mine", **IDX[case])
    line = fails(["collapse", *TINY, "--data.name", str(folder)])
    assert "mine" in line


def write_parquet(path: Path, rows: int = 40) -> bytes:
    """A parquet file of inputs that are lists, and labels."""
    pq.write_table(pa.table({"x": [[0.0, 1.0]] * rows, "label": [i % 4 for i in range(rows)]}), path)
    return path.read_bytes()


@pytest.mark.parametrize("case", ["truncated", "text", "empty", "no label", "absent"])
def test_damaged_parquet(case: str, fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    whole = write_parquet(path)
    if case == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif case == "text":
        path.write_text("label,x\n0,1\n")
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "no label":
        pq.write_table(pa.table({"x": [[0.0, 1.0]] * 4}), path)
    else:
        path.unlink()
    assert "mine.parquet" in fails(["collapse", *TINY, "--data.name", str(path)])


@pytest.mark.parametrize("case", ["truncated", "no arrays", "lengths", "objects", "nan"])
def test_damaged_npz(case: str, fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    x, y = np.random.default_rng(0).random((40, 6), np.float32), np.arange(40) % 4
    arrays = {"train_inputs": x, "train_labels": y, "test_inputs": x, "test_labels": y}
    if case == "lengths":
        arrays["train_labels"] = y[:-1]
    if case == "nan":
        arrays["train_inputs"] = np.full_like(x, np.nan)
    if case == "objects":
        arrays["train_labels"] = np.array([{"a": 1}] * 40, dtype=object)
    if case == "no arrays":
        arrays = {"something": x}
    np.savez(path, **arrays)
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    line = fails(["collapse", *TINY, "--data.name", str(path)])
    assert "mine" in line or "inputs" in line or "labels" in line


SPECS = {
    "unknown field": ("[train]\nlearning_rate = 1.0\n", "train.learning_rate"),
    "near miss": ("[train]\nepoch = 3\n", "did you mean train.epochs"),
    "unknown table": ("[trian]\nlr = 1.0\n", "did you mean train"),
    "wrong type": ('[train]\nlr = "fast"\n', "train.lr must be float"),
    "not finite": ("[train]\nlr = nan\n", "train.lr must be finite"),
    "wrong choice": ('[train]\nloss = "hinge"\n', "train.loss must be one of"),
    "a value for a table": ("train = 3\n", "train must be a table"),
    "another study": ('study = "descent"\n', "study must be one of collapse"),
    "not TOML": ("lr: 0.1\n", "cannot read a spec"),
    "out of the folder": ('recipe = "../../elsewhere"\n', "recipe must be made of letters"),
    "out of range": ("[data]\nlabel_noise = 2.0\n", "label_noise"),
}


@pytest.mark.parametrize("case", sorted(SPECS))
def test_bad_spec_files(case: str, fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    text, words = SPECS[case]
    (tmp_path / "mine.toml").write_text(text)
    assert words in fails(["collapse", "--spec", "mine.toml", "--no-report"])


def test_a_spec_file_that_is_absent_binary_or_beside_a_recipe(
    fails: Callable[[list[str]], str], tmp_path: Path
) -> None:
    assert "absent.toml" in fails(["collapse", "--spec=absent.toml"])
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "binary.toml" in fails(["collapse", "--spec", "binary.toml"])
    (tmp_path / "good.toml").write_text("")
    assert "not both" in fails(["collapse", "digits-mlp", "--spec", "good.toml"])


def test_a_spec_file_is_where_the_options_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "mine"\n[train]\nepochs = 5\nbatch_size = 25\n[data]\ntrain_size = 50\ntest_size = 20\n')
    assert main(["collapse", "--spec", str(file), *TINY, "--out", str(tmp_path / "runs")]) == 0
    (found,) = store.find_runs(tmp_path / "runs")
    assert found.path.name.startswith("collapse-mine-")
    assert found.spec["train"]["batch_size"] == 25
    assert found.spec["train"]["epochs"] == 1, "an option wins over the file"
    # What a run wrote is a spec too: the same run, which is done.
    capsys.readouterr()
    again = ["collapse", "--spec", str(found.path / "spec.toml"), "--no-report", "--out", str(tmp_path / "runs")]
    assert main(again) == 0
    assert str(found.path) in capsys.readouterr().out


FUNCTIONS = """
import torch
def raises(input_shape, num_classes):
    raise RuntimeError("my own bug")
def gives_text(input_shape, num_classes):
    return "a network"
def three_outputs(input_shape, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
def does_not_fit(input_shape, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, num_classes))
def no_arguments():
    return torch.nn.Linear(1, 1)
def data_raises():
    raise KeyError("my own bug")
def data_text():
    return "points"
def data_unseen():
    x, y = torch.rand(40, 6), torch.arange(40) % 4
    return x[y != 2], y[y != 2], x, y
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "my own bug"),
        ("gives_text", "gives_text"),
        ("three_outputs", "three_outputs"),
        ("does_not_fit", "does_not_fit"),
        ("no_arguments", "no_arguments"),
        ("absent", "absent"),
    ],
)
def test_model_functions(name: str, words: str, fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    (tmp_path / "bad_parts.py").write_text(FUNCTIONS)
    assert words in fails([*QUICK, "--model.name", f"bad_parts:{name}"])


@pytest.mark.parametrize(
    ("name", "words"),
    [("data_raises", "data_raises"), ("data_text", "data_text"), ("data_unseen", "[2] have held-out points but no")],
)
def test_data_functions(name: str, words: str, fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    (tmp_path / "bad_parts.py").write_text(FUNCTIONS)
    assert words in fails(["collapse", *TINY, "--data.name", f"bad_parts:{name}"])


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("k", "500", "measure.k must lie in 1..19, neighbours among 20 held-out points, not 500"),
        ("k", "0", "measure.k must lie in 1..19"),
        ("subsample", "3", "measure.subsample must be at least 20, two for each of the 10 classes, not 3"),
        ("picture", "0", "measure.picture must be at least 1, not 0"),
        ("epsilon", "-1", "measure.epsilon must be at least 0, not -1"),
        ("robustness", "-1", "measure.robustness must be at least 0, not -1"),
        ("points", "1", "measure.points must be at least 2, not 1"),
        ("full-every", "-1", "measure.full_every must be at least 0, not -1"),
    ],
)
def test_measures_that_cannot_be_taken(option: str, value: str, words: str, fails: Callable[[list[str]], str]) -> None:
    assert words in fails([*QUICK, f"--measure.{option}", value])


def test_a_folder_that_cannot_be_written(fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in fails([*QUICK, "--out", "file"])
    assert "file" in fails([*QUICK, "--out", "file/below"])


def test_a_full_folder(fails: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    assert "No space left" in fails([*QUICK, "--out", "runs"])


def good_run(root: Path) -> Path:
    """The smallest folder that is a run."""
    path = root / "collapse-mine-0"
    path.mkdir(parents=True)
    (path / "spec.toml").write_text('study = "collapse"\nrecipe = "mine"\nseed = 0\n')
    (path / "env.json").write_text('{"format": 1, "layers": ["input"], "class_names": ["a", "b"]}')
    row = '{"study": "collapse", "seed": 0, "step": 0, "epoch": 0, "layer": "", "split": "train", "metric": "loss", '
    (path / "records.jsonl").write_text(row + '"value": 1.0}\n')
    (path / "DONE").write_text("")
    return path


DAMAGE: dict[str, tuple[str, bytes]] = {
    "spec is not TOML": ("spec.toml", b"[[["),
    "spec is binary": ("spec.toml", b"\xff\xff"),
    "env is not JSON": ("env.json", b"{"),
    "env is a list": ("env.json", b"[1]"),
    "layers are a number": ("env.json", b'{"layers": 3}'),
    "class names are a number": ("env.json", b'{"class_names": 3}'),
    "a record is not JSON": ("records.jsonl", b"nonsense\n"),
    "a record is a list": ("records.jsonl", b"[1]\n"),
    "a record without a metric": ("records.jsonl", b'{"epoch": 0, "value": 1.0}\n'),
    "a record whose value is text": ("records.jsonl", b'{"epoch": 0, "metric": "loss", "value": "high"}\n'),
    "a record whose epoch is text": ("records.jsonl", b'{"epoch": "first", "metric": "loss", "value": 1.0}\n'),
    "a record whose layer is a list": ("records.jsonl", b'{"epoch": 0, "metric": "loss", "value": 1.0, "layer": []}\n'),
    "tensors are text": ("tensors/epoch-000000.safetensors", b"nonsense"),
    "tensors are cut": ("tensors/epoch-000000.safetensors", struct.pack("<Q", 10**6) + b"{}"),
}


@pytest.mark.parametrize("case", sorted(DAMAGE))
@pytest.mark.parametrize("how", ["page", "figures"])
def test_damaged_runs(case: str, how: str, fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    path = good_run(tmp_path / "runs")
    name, content = DAMAGE[case]
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(content)
    line = fails(["report", "runs", *(["--figures", "--only", "simplex"] if how == "figures" else [])])
    assert Path(name).name in line


def test_a_good_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good_run(tmp_path / "runs")
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "report.html").exists()


def test_reports_that_cannot_be_made(fails: Callable[[list[str]], str], tmp_path: Path) -> None:
    good_run(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    assert "absent" in fails(["report", "absent"])
    assert "file" in fails(["report", "runs", "--out", "file/report.html"])
    assert "file" in fails(["report", "runs", "--figures", "--only", "simplex", "--out", "file/figures"])
    assert "there are vertex-distance" in fails(["report", "runs", "--figures", "--only", "nc5"])
    assert "give --figures too" in fails(["report", "runs", "--only", "nc"])
    (tmp_path / "empty").mkdir()
    assert "no run folder" in fails(["report", "empty"])


def test_claims_that_cannot_be_tried(fails: Callable[[list[str]], str]) -> None:
    assert "did you mean nc1" in fails(["claims", "nc11", "--quick"])
    assert "there is no folder" in fails(["claims", "nc1", "--quick", "--json", "absent/rows.json"])
    assert "name it" in fails(["claims", "nc1", "nc3", "--quick", "--figure", "both.svg"])
    assert "png, pdf, svg" in fails(["claims", "nc1", "--quick", "--figure", "nc1.docx"])


def test_data_that_cannot_be_fetched(fails: Callable[[list[str]], str]) -> None:
    assert "nucleate data list" in fails(["data"])
    assert "mnits" in fails(["data", "fetch", "mnits"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["collapse", "--seed", "-1"], "seed must lie in 0..4294967295, not -1"),
        (["collapse", "--seed", "99999999999999999999"], "seed must lie in 0..4294967295"),
        (["collapse", "--data.seed", "-1"], "data.seed must lie in"),
        (["descent", "--seeds", "0", "-1"], "seeds must lie in 0..4294967295, not -1"),
        (["tickets", "--seeds", "0"], "seeds is how many seeds are run, from seed on: at least 1, not 0"),
        (["sweep", "collapse", "digits-mlp", "--seeds", "-1"], "seed must lie in"),
        (["sweep", "collapse", "digits-mlp", "--seeds", "1", "1"], "seed is given 1 twice"),
        (["sweep", "collapse", "digits-mlp", "--grid", "train.lr=0.1", "train.lr=0.2"], "names train.lr twice"),
        (["sweep", "collapse", "digits-mlp", "--grid", "train.lr=0.1,0.10"], "train.lr is given 0.1 twice"),
        (["sweep", "collapse", "digits-mlp", "--grid", "seed=1,2"], "go with --seeds"),
    ],
)
def test_seeds_and_grids(args: list[str], words: str, fails: Callable[[list[str]], str]) -> None:
    assert words in fails(args)
