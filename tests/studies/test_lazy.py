"""The lazy study against the closed form of its kernel, autograd and linear theory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nucleate.cli.main import main
from nucleate.kernels.exact import ntk
from nucleate.report import page
from nucleate.spec import DataSpec, LazySpec
from nucleate.studies.lazy import run
from nucleate.studies.shallow import draw

SMALL = LazySpec(
    recipe="small", seeds=(0, 1), data=DataSpec(train_size=60), widths=(16, 256), steps=150, probe=30,
    noises=(0.0, 1.0), threads=1,
)  # fmt: skip


def test_training_by_hand_is_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 4, generator=generator), torch.randn(9, 2, generator=generator)
    net = draw(4, 7, 2, generator)
    w, v = (t.clone().requires_grad_() for t in (net.first, net.second))
    net.train(x, y, steps=5, rate=0.3)
    for _ in range(5):
        f = (2 / 7) ** 0.5 * ((x @ w).relu() @ v)
        grads = torch.autograd.grad((f - y).square().sum() / 18, (w, v))
        with torch.no_grad():
            for p, g in zip((w, v), grads, strict=True):
                p -= 0.3 * g
    torch.testing.assert_close(net.first, w.detach())
    torch.testing.assert_close(net.second, v.detach())


def test_its_kernel_tends_to_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator).double())
    wanted = ntk(x, depth=1)
    gaps = [float((draw(5, m, 10, generator).kernel(x) - wanted).norm() / wanted.norm()) for m in (100, 10_000)]
    assert gaps[1] < 0.3 * gaps[0] and gaps[1] < 0.05


def test_wide_networks_come_to_their_kernel(tmp_path: Path) -> None:
    done = run(SMALL, root=tmp_path)
    for metric in ("gap", "drift", "movement"):
        for seed in SMALL.seeds:
            narrow, wide = (
                r["value"]
                for w in SMALL.widths
                for r in done.records
                if r["metric"] == metric and r["seed"] == seed and r.get("width") == w
            )
            assert wide < narrow / 2
        assert all(r["value"] < -0.2 for r in done.select(metric=f"{metric}_slope"))
    bounds = {(r["seed"], r["noise"]): r["value"] for r in done.select(metric="bound")}
    assert all(bounds[s, 1.0] > bounds[s, 0.0] for s in SMALL.seeds)
    values = [r["value"] for r in done.select(metric="eigenvalue")]
    assert values == sorted(values, reverse=True)
    assert "Wide and shallow" in page([done], tmp_path / "page.html").read_text()


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    whole = run(SMALL, root=tmp_path / "whole")

    def stop(n: int) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(SMALL, root=tmp_path / "killed", tick=stop)
    assert run(SMALL, root=tmp_path / "killed").records == whole.records


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--widths", "8", "32", "--steps", "20", "--data.train-size", "40", "--seeds", "1", "2", "--noises", "0"]
    assert main(["lazy", "digits", *small, "--jobs", "1", "--no-report", "--out", str(tmp_path)]) == 0
    assert "gap slope along width: -" in capsys.readouterr().out
    assert main(["lazy", "digits", "--widths", "0"]) == 2
    assert capsys.readouterr().err == "nucleate: widths must be whole numbers from 1 on, not [0]\n"


def test_nonsense_is_refused(tmp_path: Path) -> None:
    for change, message in (
        ({"rate_share": 1.0}, "rate_share"),
        ({"noises": (2.0,)}, "label noise"),
        ({"seeds": ()}, "seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            run(replace(SMALL, **change), root=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [5, 4096])
def test_descent_is_that_of_autograd(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(150, size, generator=generator, dtype=torch.float64) for size in (6, 3))
    net = draw(6, width, 3, generator)
    net.first, net.second = net.first.double(), net.second.double()
    own = [w.clone().requires_grad_() for w in (net.first, net.second)]
    for _ in range(3):
        loss = ((2 / width) ** 0.5 * (x @ own[0]).relu() @ own[1] - y).square().sum() / (2 * len(x))
        with torch.no_grad():
            for w, g in zip(own, torch.autograd.grad(loss, own), strict=True):
                w -= 0.3 * g
    net.train(x, y, steps=3, rate=0.3)
    torch.testing.assert_close([net.first, net.second], [w.detach() for w in own], rtol=1e-9, atol=1e-12)
