"""Runs as rows."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from nucleate.cli import main
from nucleate.runs import RunError, find_runs, write_run
from nucleate.runs.tables import comparison, differing, matching, tidy, write_table
from nucleate.spec import CollapseSpec, TrainSpec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, lr in ((0, 0.1), (1, 0.1), (0, 0.01)):
        spec = replace(CollapseSpec(), seed=seed, train=TrainSpec(lr=lr))
        with write_run(tmp_path / "runs", spec, env={}) as writer:
            base = {"seed": seed, "layer": "", "split": "train", "metric": "loss"}
            writer.append([base | {"epoch": 0, "value": 9.0}, base | {"epoch": 1, "value": lr + seed}])
            writer.append([base | {"epoch": 1, "metric": "nc1", "value": math.nan}])
            if seed == 0:
                writer.finish()
    return tmp_path / "runs"


def test_runs_are_found_by_what_their_spec_says(root: Path) -> None:
    runs = find_runs(root)
    assert len(matching(runs, ["train.lr=0.1"])) == 2
    assert len(matching(runs, ["train.lr=1e-1", "seed=1"])) == 1
    assert len(matching(runs, ["done=true"])) == 2 and len(matching(runs, ["done=false"])) == 1
    assert matching(runs, ["train.lr=fast"]) == []
    with pytest.raises(RunError, match=r"no run has a field 'train\.rate'"):
        matching(runs, ["train.rate=1"])
    with pytest.raises(RunError, match="field=value"):
        matching(runs, ["train.lr"])


def test_only_what_differs_is_compared(root: Path) -> None:
    runs = find_runs(root)
    assert differing(runs) == ["seed", "train.lr"]
    rows = comparison(runs, ["loss"])
    assert {(r["seed"], r["train.lr"]): r["train loss"] for r in rows} == {
        (0, 0.1): 0.1,
        (1, 0.1): 1.1,
        (0, 0.01): 0.01,
    }
    with pytest.raises(RunError, match="has a metric 'los'"):
        comparison(runs, ["los"])


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_table_comes_back_as_it_was_written(root: Path, tmp_path: Path, ending: str) -> None:
    rows = tidy(find_runs(root))
    path = tmp_path / f"t.{ending}"
    write_table(rows, path)
    if ending == "csv":
        back = list(csv.DictReader(path.read_text().splitlines()))
    elif ending == "json":
        back = json.loads(path.read_text())
    else:
        back = pyarrow.parquet.read_table(path).to_pylist()
    assert len(back) == 9
    for row, wanted in zip(back, rows, strict=True):
        assert row["run"] == wanted["run"] and float(row["train.lr"]) == wanted["train.lr"]
        if math.isfinite(wanted["value"]):
            assert float(row["value"]) == wanted["value"]
        else:
            assert row["value"] in ("", None)


def test_another_ending_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"\.csv, \.json, \.parquet"):
        write_table(tidy(find_runs(root)), tmp_path / "t.xlsx")


def test_the_command_lists_compares_and_removes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", str(root)]) == 0
    assert capsys.readouterr().out.count("done") == 2
    assert main(["runs", "compare", str(root), "--metrics", "loss"]) == 0
    assert "train.lr" in capsys.readouterr().out
    assert main(["runs", "table", str(root), "--out", str(tmp_path / "t.csv")]) == 0
    assert main(["runs", "remove", str(root), "--where", "seed=1"]) == 0
    assert "add --yes" in capsys.readouterr().out and len(find_runs(root)) == 3
    assert main(["runs", "remove", str(root), "--where", "seed=1", "--yes"]) == 0
    assert len(find_runs(root)) == 2
    for wrong in (["runs"], ["runs", "table", str(root)], ["runs", "list", str(root), "--where", "seed=8"]):
        assert main(wrong) == 2
