"""Run folders: kills, locks, damage."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nucleate.runs import RunError, find_runs, open_run, write_run
from nucleate.runs.store import write_atomic
from nucleate.spec import CollapseSpec


def row(value: float, epoch: int = 0) -> dict[str, object]:
    return {"study": "collapse", "seed": 0, "step": 0, "epoch": epoch, "layer": "", "split": "train"} | {
        "metric": "loss",
        "value": value,
    }


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    with write_run(tmp_path, CollapseSpec(), env={"torch": "x"}) as writer:
        writer.append([row(1.5), row(math.nan)])
        writer.save_tensors("epoch-000000", {"a": np.arange(6.0).reshape(2, 3).T})
        writer.update_env(zero_error_epoch=3)
        writer.finish()
    run = open_run(writer.path)
    assert run.done
    assert run.env["zero_error_epoch"] == 3 and run.env["torch"] == "x"
    assert run.spec["train"]["lr"] == CollapseSpec().train.lr
    assert run.records[0]["value"] == 1.5 and math.isnan(run.records[1]["value"])
    np.testing.assert_array_equal(run.tensors("epoch-000000")["a"], np.arange(6.0).reshape(2, 3).T)
    assert find_runs(tmp_path)[0].path == run.path
    assert "zero error" in run._repr_html_()


def test_records_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.append([row(1.0)])
        writer.checkpoint(b"state")
        writer.append([row(2.0)])
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        assert writer.restore() == b"state"
        assert [r["value"] for r in writer.records] == [1.0]


def test_without_a_checkpoint_a_run_starts_over(tmp_path: Path) -> None:
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.append([row(1.0)])
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        assert writer.restore() is None
        assert writer.records == []


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.append([row(1.0)])
    with (writer.path / "records.jsonl").open("a") as file:
        file.write('{"study": "coll')
    assert len(open_run(writer.path).records) == 1


def test_a_second_process_is_told(tmp_path: Path) -> None:
    code = (
        "import sys; from nucleate.runs import write_run, RunError; from nucleate.spec import CollapseSpec\n"
        "try:\n"
        "  with write_run(sys.argv[1], CollapseSpec(), env={}): sys.exit(1)\n"
        "except RunError as error: sys.exit(0 if 'another process' in str(error) else 2)"
    )
    with write_run(tmp_path, CollapseSpec(), env={}):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 1


@pytest.mark.parametrize("name", ["env.json", "spec.toml", "records.jsonl"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.append([row(1.0)])
    (writer.path / name).write_bytes(b"\xff{\n")
    run = open_run(writer.path)
    with pytest.raises(RunError, match=name):
        _ = run.env, run.spec, run.records


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no spec\.toml"):
        open_run(tmp_path)
    with pytest.raises(RunError, match="no run folder"):
        find_runs(tmp_path)
    with pytest.raises(RunError, match="not a folder"):
        find_runs(tmp_path / "absent")


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write"), write_run(tmp_path / "file", CollapseSpec(), env={}):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_atomic(target, b"old")
    with pytest.raises(TypeError):
        write_atomic(target, "text")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may pass 4 KiB, as on a disk that fills up."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_fills_up_leaves_whole_records_and_no_part_of_a_file(tmp_path: Path, small_disk: None) -> None:
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.append([row(1.0)])
        whole = (writer.path / "records.jsonl").read_bytes()
        with pytest.raises(RunError, match="cannot write to"):
            writer.append([row(float(i)) for i in range(100)])
        assert (writer.path / "records.jsonl").read_bytes() == whole
        with pytest.raises(RunError, match="cannot write"):
            writer.save_tensors("big", {"x": np.zeros(2000)})
        with pytest.raises(RunError, match="cannot write"):
            writer.checkpoint(bytes(8000))
        assert writer.restore() is None
        assert not writer.tensor_names and not list(writer.path.rglob("*.tmp"))


def test_a_full_disk_is_one_error() -> None:
    with pytest.raises(RunError, match="cannot write"):
        write_atomic(Path("/dev/full/a"), b"x")


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.save_tensors("epoch-000001", {})
        left = [writer.path / ".env.json.1.tmp", writer.path / "tensors" / ".epoch-000001.safetensors.1.tmp"]
        for path in left:
            path.write_bytes(b"half")
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        assert not any(path.exists() for path in left)
        assert writer.tensor_names == ["epoch-000001"]
