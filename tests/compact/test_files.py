"""Sparse files: read back bit for bit, small, and never believed when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nucleate.compact.files import load_sparse, read_record, save_sparse
from nucleate.pruning.prune import prune


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    )


@pytest.mark.parametrize(("density", "share"), [(0.1, 6), (0.05, 10)])
def test_small_enough_and_the_same_bits(tmp_path: Path, density: float, share: int) -> None:
    g = Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    masks = {f"{i}.weight": (torch.rand(net[i].weight.shape, generator=g) < density).to(torch.uint8) for i in (0, 2, 4)}
    size = save_sparse(net, tmp_path / "sparse.safetensors", masks, record={"method": "magnitude", "density": density})
    assert size == (tmp_path / "sparse.safetensors").stat().st_size
    save_file(net.state_dict(), tmp_path / "dense.safetensors")
    assert size * share <= (tmp_path / "dense.safetensors").stat().st_size
    back = load_sparse(tmp_path / "sparse.safetensors")
    assert list(back) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        kept = masks.get(name, torch.ones_like(tensor)) != 0
        assert same_bits(back[name], torch.where(kept, tensor, torch.zeros(())))
    assert read_record(tmp_path / "sparse.safetensors") == {"method": "magnitude", "density": density}


def test_every_dtype_sign_and_shape(tmp_path: Path) -> None:
    g = Generator().manual_seed(1)
    tensors = {
        str(dtype): torch.where(torch.rand(7, 9, generator=g) < 0.1, torch.full((7, 9), 3.0), torch.zeros(7, 9)).to(
            dtype
        )
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
    }
    tensors |= {"scalar": torch.tensor(5), "empty": torch.empty(0, 3), "zeros": torch.zeros(40), "full": torch.ones(5)}
    tensors["signs"] = torch.tensor([0.0, float("nan"), float("-inf")] + [0.0] * 60)
    tensors["turned"] = tensors["torch.float32"].T
    tensors["tied"] = tensors["torch.float32"]
    save_sparse(tensors, tmp_path / "f")
    back = load_sparse(tmp_path / "f")
    assert set(back) == set(tensors)
    assert all(same_bits(back[name], tensors[name]) for name in tensors)
    assert back["tied"].data_ptr() == back["torch.float32"].data_ptr()


def test_a_weight_times_zero_is_pruned_whatever_its_sign(tmp_path: Path) -> None:
    save_sparse({"w": torch.full((800,), -1.0) * (torch.arange(800) < 40)}, tmp_path / "f")
    assert (tmp_path / "f").stat().st_size < 800
    assert torch.equal(load_sparse(tmp_path / "f")["w"], -(torch.arange(800) < 40).float())


def test_a_file_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    net = nn.Linear(50, 40)
    save_file(net.state_dict(), tmp_path / "dense")
    mask = torch.rand(40, 50) < 0.1
    save_sparse(tmp_path / "dense", tmp_path / "sparse", {"weight": mask})
    assert torch.equal(load_sparse(tmp_path / "sparse")["weight"], net.weight * mask)


def test_a_mask_on_any_name_of_tied_weights_holds(tmp_path: Path) -> None:
    weight = torch.randn(40, 30, generator=Generator().manual_seed(0))
    mask = torch.rand(40, 30, generator=Generator().manual_seed(1)) < 0.1
    for masks in ({"b": mask}, {"a": mask}, {"a": mask, "b": mask.float()}):
        save_sparse({"a": weight, "b": weight}, tmp_path / "f", masks)
        back = load_sparse(tmp_path / "f")
        assert same_bits(back["a"], torch.where(mask, weight, torch.zeros(())))
        assert same_bits(back["b"], back["a"])
    with pytest.raises(ValueError, match="'b' and 'a' are one tensor, but their masks differ"):
        save_sparse({"a": weight, "b": weight}, tmp_path / "f", {"a": mask, "b": ~mask})


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, AveragedModel, lambda net: torch.compile(net, backend="eager")],
    ids=["DataParallel", "AveragedModel", "compile"],
)
def test_wrapped_models_take_the_names_that_prune_gives(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 2))
    wrapped = wrap(net)
    masks = prune(wrapped, "magnitude", 0.1).masks
    assert list(masks) == ["0.weight"]
    save_sparse(wrapped, tmp_path / "f", masks)
    net.load_state_dict(load_sparse(tmp_path / "f"))
    assert int((net[0].weight != 0).sum()) == masks.kept


def test_damage_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    save_sparse({"a": torch.eye(40), "b": torch.arange(6.0)}, path)
    whole = path.read_bytes()
    step = max(1, len(whole) // 150)
    for i in range(0, len(whole), step):
        for damaged in (whole[:i], whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :]):
            path.write_bytes(damaged)
            try:
                back = load_sparse(path)
            except ValueError as error:
                assert "\n" not in str(error).strip() and str(path) in str(error)
            else:
                # A space of the header's padding, or a name, may differ: never a value.
                assert all(
                    torch.equal(t, r) for t, r in zip(back.values(), (torch.eye(40), torch.arange(6.0)), strict=True)
                )


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="mask for 'wieght', but no such tensor; there are weight, bias"):
        save_sparse(net, tmp_path / "f", {"wieght": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"mask of 'weight' has shape \(3, 2\), its tensor \(2, 3\)"):
        save_sparse(net, tmp_path / "f", {"weight": torch.ones(3, 2)})
    with pytest.raises(ValueError, match="record is no JSON"):
        save_sparse(net, tmp_path / "f", record={"x": torch.ones(1)})
    for name in ("w.bits", "w.values", "__metadata__"):
        with pytest.raises(ValueError, match=f"would hold {name!r} twice: rename"):
            save_sparse({name: torch.ones(3), "w": torch.eye(100)}, tmp_path / "f")
    with pytest.raises(ValueError, match="'_extra_state' is a dict, not a tensor"):
        save_sparse({"w": torch.ones(3), "_extra_state": {"a": 1}}, tmp_path / "f")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="there is no file"):
        load_sparse(tmp_path / "g")
    save_file({"a": torch.ones(2)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="was not written by save_sparse"):
        load_sparse(tmp_path / "plain")
    assert not (tmp_path / "f").exists() and list(tmp_path.iterdir()) == [tmp_path / "plain"]
