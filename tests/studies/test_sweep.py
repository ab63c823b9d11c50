"""The sweep of a study from the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nucleate.cli import main
from nucleate.cli.sweep import cells_of
from nucleate.recipes.collapse import recipe
from nucleate.runs import Run, find_runs
from nucleate.studies import cells, collapse
from nucleate.studies.cells import run_specs
from nucleate.studies.estimate import estimate

SMALL = ["train.epochs=2", "train.threads=1", "model.width=8", "measure.points=2", "measure.robustness=0"]


def test_a_dry_run_counts_down_as_cells_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "collapse", "digits-mlp", "--out", str(tmp_path), "--grid", *SMALL, "--seeds", "0", "1"]
    assert main([*command, "--dry-run"]) == 0
    first = capsys.readouterr().out
    assert "2 cells, 2 missing" in first and "GiB" in first and "training steps" in first
    assert not list(tmp_path.iterdir())
    assert main([*command, "--only", "2/2", "--executor", "serial"]) == 0
    assert [run.spec["seed"] for run in find_runs(tmp_path)] == [1]
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    later = capsys.readouterr().out
    assert "2 cells, 1 missing" in later and "seed=0" in later and "finished runs" in later
    assert main([*command, "--executor", "serial"]) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert "0 missing" in capsys.readouterr().out


def test_the_estimate_grows_with_the_cells(tmp_path: Path) -> None:
    one = estimate(cells_of(recipe("digits-mlp"), SMALL, [0]), root=tmp_path)
    assert one.seconds > 0 and one.memory > 2**27
    assert len(estimate(cells_of(recipe("digits-mlp"), SMALL, [0, 1]), root=tmp_path).missing) == 2


def test_a_run_has_its_share_of_threads_throughout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(*args: Any, **options: Any) -> Run:
        seen.append(torch.get_num_threads())
        return collapse.run(*args, **options)

    monkeypatch.setattr(cells, "_study", lambda spec: SimpleNamespace(run=run, size=collapse.size))
    (spec,) = cells_of(recipe("digits-mlp"), SMALL, [0])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_specs([spec], root=tmp_path, threads=1, progress=False)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sweep"], "write: nucleate sweep"),
        (["sweep", "collapse", "digit-mlp"], "did you mean digits-mlp"),
        (["sweep", "collapse", "digits-mlp", "--grid", "train.lr"], "field=value"),
        (["sweep", "collapse", "digits-mlp", "--grid", "train.rate=1"], "unknown field 'train.rate'"),
        (["sweep", "collapse", "digits-mlp", "--grid", "train.lr=fast"], "train.lr must be float"),
        (["sweep", "collapse", "digits-mlp", "--only", "3/2"], "--only takes i/n"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert words in capsys.readouterr().err
