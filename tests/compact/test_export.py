"""Exported files run without nucleate and give the model's outputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from nucleate.compact.export import export
from nucleate.compact.shrink import shrink
from nucleate.compact.sparse import SparseLinear


def convnet() -> tuple[nn.Module, Tensor]:
    """A small network, three of four channels dead."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(1024, 32),
        ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight[16:] = 0
        net[0].bias[16:] = 0
    return net, torch.randn(3, 3, 8, 8, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [".onnx", ".pt2"])
def test_files_run_without_nucleate_and_shrinking_makes_them_small(tmp_path: Path, kind: str) -> None:
    if kind == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason="the extra onnx is not installed")
    net, x = convnet()
    small = shrink(net, None, x)
    paths = [tmp_path / f"{name}{kind}" for name in ("zeros", "shrunk")]
    for path, model in zip(paths, (net, small), strict=True):
        assert export(model, path, x) < 1e-5
    assert paths[1].stat().st_size < 0.6 * paths[0].stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    torch.save((x, net(x)), tmp_path / "points")
    run = (
        "import onnxruntime; got = torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {name: x.numpy()})[0])"
        if kind == ".onnx"
        else "got = torch.export.load(path).module()(x)"
    )
    run = run.replace("{name:", "{onnxruntime.InferenceSession(path).get_inputs()[0].name:")
    code = f"import sys, torch; path = {str(paths[1])!r}; x, y = torch.load({str(tmp_path / 'points')!r}); {run}; "
    code += "assert torch.allclose(got, y, atol=1e-5) and 'nucleate' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"net.pt must end in one of .onnx, .pt2"):
        export(nn.Linear(2, 2), tmp_path / "net.pt", torch.ones(1, 2))
    with pytest.raises(ValueError, match="1 is a SparseLinear, which only nucleate runs"):
        export(nn.Sequential(nn.ReLU(), SparseLinear(nn.Linear(2, 2))), tmp_path / "net.pt2", torch.ones(1, 2))

    class Branch(nn.Module):
        """Depends on its data."""

        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branch cannot be exported as torch.export program"):
        export(Branch(), tmp_path / "net.pt2", torch.ones(2, 2))

    class Fixed(nn.Module):
        """Runs on two points only."""

        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, -1)

    with pytest.raises(ValueError, match=r"(?s)Fixed cannot be exported.*specialized it to be a constant \(2\)"):
        export(Fixed(), tmp_path / "net.pt2", torch.ones(2, 2))

    class Two(nn.Module):
        """Gives two tensors."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, -x

    with pytest.raises(ValueError, match="Two gives a tuple, not one tensor"):
        export(Two(), tmp_path / "net.pt2", torch.ones(2, 2))
    assert not list(tmp_path.iterdir())
