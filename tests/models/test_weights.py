"""Weights from files that others wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from nucleate.models.weights import checkpoints, load_weights, read_weights


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "checkpoint"])
def test_what_was_saved_is_loaded(tmp_path: Path, kind: str) -> None:
    source, model = net(), net()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    state = source.state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "pt":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save(nn.DataParallel(source).state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": state}, path)
    load_weights(model, path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))


def test_code_is_not_run(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        read_weights(tmp_path / "whole.pt")


def test_folders_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("epoch-10.pt", "epoch-2.pt", "epoch-1.pt", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in checkpoints(tmp_path)] == ["epoch-1.pt", "epoch-2.pt", "epoch-10.pt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.weight"), "1 of the model's tensors are not in"),
        (lambda s: s.update({"0.wight": torch.zeros(1)}), "nearest: '0.weight'"),
        (lambda s: s.update({"0.bias": torch.zeros(5)}), r"'0.bias' is \(5,\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: object, words: str) -> None:
    state = dict(net().state_dict())
    change(state)  # type: ignore[operator]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=words):
        load_weights(net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.safetensors", b"\x00" * 7, "damaged"),
        ("w.pt", b"", "damaged"),
        ("w.pt", b"PK\x03\x04half", "damaged"),
        ("w.onnx", b"x", "must end in"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder"):
        checkpoints(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no weights"):
        checkpoints(tmp_path)
    with pytest.raises(ValueError, match="cannot read"):
        read_weights(tmp_path / "absent.pt")
