"""The bias study against solutions that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from nucleate.cli.main import main
from nucleate.report import page
from nucleate.runs import Run
from nucleate.spec import BiasSpec, DataSpec
from nucleate.studies.bias import run
from nucleate.studies.bias.problems import hard_margin, log_steps

QUICK = BiasSpec(recipe="quick", seeds=(0, 1), steps=1500, points=6, threads=1)


def ends(done: Run, metric: str) -> dict[str, list[float]]:
    last = {arm: max(r["step"] for r in done.records if r["arm"] == arm) for arm in {r["arm"] for r in done.records}}
    found: dict[str, list[float]] = {}
    for r in done.select(metric=metric):
        if r["step"] == last[r["arm"]]:
            found.setdefault(r["arm"], []).append(r["value"])
    return found


def test_least_squares_ends_at_the_least_norm_only_from_zero(tmp_path: Path) -> None:
    done = run(QUICK, root=tmp_path)
    distance = ends(done, "distance")
    assert max(distance["from zero"]) < 1e-3
    assert min(distance["from a random start"]) > 0.1 and min(distance["Adam from zero"]) > 0.1
    # Each of them fits: the distance is a matter of choice, not of being unfinished.
    assert all(max(values) < 1e-4 for values in ends(done, "loss").values())


def test_separable_points_turn_to_the_largest_margin(tmp_path: Path) -> None:
    done = run(replace(QUICK, problem="max-margin", steps=4000), root=tmp_path)
    cosine = ends(done, "cosine")
    assert min(cosine["normalised"]) > 0.999 > max(cosine["plain"]) > 0.9
    for seed in QUICK.seeds:
        curve = [r["value"] for r in done.select(metric="cosine", arm="plain", seed=seed)]
        assert curve[-1] > curve[1]


def test_the_hard_margin_is_that_of_a_support_vector_machine() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        truth = rng.normal(size=6)
        x = rng.normal(size=(30, 6))
        z = x * np.sign(x @ truth)[:, None] + 0.2 * truth
        # Both signs of every point: the machine's offset is then zero.
        machine = SVC(kernel="linear", C=1e8, tol=1e-8).fit(np.vstack([z, -z]), np.repeat([1, -1], 30))
        wanted = machine.coef_[0] / np.linalg.norm(machine.coef_[0])
        np.testing.assert_allclose(hard_margin(torch.from_numpy(z)).numpy(), wanted, atol=1e-4)
    with pytest.raises(ValueError, match="not separable"):
        hard_margin(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double())


def test_the_sharpness_settles_at_two_over_the_rate(tmp_path: Path) -> None:
    spec = replace(
        QUICK, problem="edge", data=DataSpec(train_size=100), width=24, rates=(0.2, 0.3), steps=700, points=3
    )
    done = run(spec, root=tmp_path)
    for values in ends(done, "sharpness_ratio").values():
        assert values == pytest.approx([1.0, 1.0], abs=0.2)
    assert all(r["value"] > 0 for r in done.select(metric="loss"))


def test_depth_prefers_low_rank(tmp_path: Path) -> None:
    done = run(replace(QUICK, problem="depth", steps=3000), root=tmp_path)
    error, rank = ends(done, "unseen_error"), ends(done, "effective_rank")
    assert min(error["1 factor"]) > 0.9
    assert max(error["3 factors"]) < min(error["1 factor"])
    assert np.mean(rank["3 factors"]) < np.mean(rank["2 factors"]) < np.mean(rank["1 factor"])


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    spec = replace(QUICK, problem="max-margin", steps=50)
    whole = run(spec, root=tmp_path / "whole")

    def stop(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec, root=tmp_path / "killed", tick=stop)
    assert run(spec, root=tmp_path / "killed").records == whole.records


def test_from_the_command_line_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bias", "max-margin", "--steps", "60", "--seeds", "3", "--jobs", "1", "--out", str(tmp_path)]) == 0
    assert "normalised" in capsys.readouterr().out
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    text = page([Run(folder)], tmp_path / "page.html").read_text()
    assert "What gradient descent prefers" in text and "Sharpness x rate" not in text
    assert main(["bias", "edge", "--rates", "-1"]) == 2
    assert capsys.readouterr().err == "nucleate: rates must be above 0, not [-1.0]\n"
    assert log_steps(10, 2) == [1, 10]
