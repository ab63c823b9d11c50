"""Two processes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nucleate.runs import find_runs
from nucleate.training import parallel

COMMAND = ["-m", "nucleate", "collapse", "digits-mlp", "--no-report", "--train.epochs", "4", "--model.width", "32"]
COMMAND += ["--measure.points", "2", "--measure.robustness", "0", "--train.batch-size", "97"]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_two_ranks_give_the_losses_of_one_and_one_folder(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([sys.executable, *COMMAND, "--out", str(one)], env=env, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, *torchrun, *COMMAND, "--out", str(two)], env=env, check=True, capture_output=True, text=True
    )
    assert done.stdout.count("run: ") == 1
    (alone,), (shared,) = find_runs(one), find_runs(two)
    assert shared.done and shared.env["ranks"] == 2 and alone.path.name == shared.path.name
    assert not list(two.rglob("*.tmp"))
    losses = [[r["value"] for r in run.select(metric="epoch_loss") if r["epoch"]] for run in (alone, shared)]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for metric in ("loss", "nc1"):
        values = [[r["value"] for r in run.select(metric=metric, epoch=4, split="test")] for run in (alone, shared)]
        assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_alone_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    parallel.share_norms(model)
    assert type(model[1]) is nn.BatchNorm1d
    assert (parallel.rank(), parallel.ranks(), parallel.told("x")) == (0, 1, "x")
    assert torch.equal(parallel.part(torch.arange(3)), torch.arange(3))
    with parallel.joined():
        assert parallel.ranks() == 1


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_shared_moments_are_batch_normalisation(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        for norm, x in ((nn.BatchNorm1d(3), torch.randn(7, 3)), (nn.BatchNorm2d(3), torch.randn(5, 3, 4, 4))):
            nn.init.normal_(norm.weight)
            ours, theirs = x.double().requires_grad_(), x.double().requires_grad_()
            norm.double()
            weights = torch.randn_like(ours)
            buffers = {k: v.clone() for k, v in norm.state_dict().items()}
            (norm(theirs) * weights).sum().backward()
            expected = {k: v.clone() for k, v in norm.state_dict().items()}
            norm.load_state_dict(buffers)
            norm.__class__ = parallel.SHARED[type(norm)]
            (norm(ours) * weights).sum().backward()
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
            for name, value in expected.items():
                torch.testing.assert_close(norm.state_dict()[name], value, rtol=0, atol=1e-12)
    finally:
        torch.distributed.destroy_process_group()
