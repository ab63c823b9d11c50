"""Weights from files that others wrote."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nucleate.compact.files import save_sparse
from nucleate.models.weights import checkpoints, load_weights, read_weights
from nucleate.pruning.prune import prune


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "averaged", "compiled", "checkpoint", "sparse"])
def test_what_was_saved_is_loaded(tmp_path: Path, kind: str) -> None:
    source, model = net(), net()
    path = tmp_path / ("w.safetensors" if kind in ("safetensors", "sparse") else "w.pt")
    state = source.state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "pt":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save(nn.DataParallel(source).state_dict(), path)
    elif kind == "averaged":
        torch.save(AveragedModel(source).state_dict(), path)
    elif kind == "compiled":
        torch.save(torch.compile(source, backend="eager").state_dict(), path)
        model = nn.DataParallel(model)
    elif kind == "sparse":
        save_sparse(source, path, prune(source, "magnitude", 0.1).masks)
        assert "0.weight.bits" in safetensors.torch.load_file(path)
    else:
        torch.save({"epoch": 3, "state_dict": state}, path)
    load_weights(model, path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))


def test_a_child_called_module_keeps_its_name(tmp_path: Path) -> None:
    def nested() -> nn.Module:
        return nn.Sequential(OrderedDict(module=nn.Linear(3, 2), head=nn.Linear(2, 2)))

    for saved in (nested(), nn.DataParallel(nested())):
        torch.save(saved.state_dict(), tmp_path / "w.pt")
        model = load_weights(nested(), tmp_path / "w.pt")
        wanted = saved.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), wanted, strict=True))


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
        ("w.pt", b"hello\n", r"no file of weights: it begins with b'hello\\n'"),
        ("w.bin", b"<!DOCTYPE html>", "no file of weights: it begins with b'<!DOCTYPE html>'"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1", "no file of weights"),
        ("w.pt", b"\x80\x02hello\n", "damaged or no file of weights: KeyError"),
        ("w.onnx", b"x", "must end in"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / name)


def test_bytes_at_random_are_refused(tmp_path: Path) -> None:
    draw = random.Random(0)
    for start in (b"", b"\x80\x02"):
        for _ in range(200):
            (tmp_path / "w.pt").write_bytes(start + draw.randbytes(draw.randrange(60)))
            with pytest.raises(ValueError, match=r"w\.pt"):
                read_weights(tmp_path / "w.pt")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder"):
        checkpoints(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no weights"):
        checkpoints(tmp_path)
    with pytest.raises(ValueError, match="cannot read"):
        read_weights(tmp_path / "absent.pt")
