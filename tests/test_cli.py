"""The command line: help at once, one clear line for a mistake."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nucleate.cli import COMMANDS, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_help_without_torch(command: str) -> None:
    code = (
        "import sys\nfrom nucleate.cli import main\ntry:\n  main([sys.argv[1], '--help'])\n"
        "except SystemExit as end:\n  assert not end.code\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, command], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["colapse"], "did you mean collapse"),
        (["collapse", "digit-mlp"], "did you mean digits-mlp"),
        (["collapse", "--train.lr", "0"], "train.lr must be a number above 0"),
        (["collapse", "--data.name", "nowhere"], "nowhere"),
        (["collapse", "--model.name", "mpl"], "did you mean mlp"),
        (["collapse", "--model.name", "absent.module:f"], "absent"),
        (["collapse", "--measure.points", "1"], "measure.points"),
        (["report"], "name a run folder"),
        (["report", "absent-folder"], "not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    out = capsys.readouterr()
    lines = [line for line in out.err.splitlines() if line.startswith("nucleate: ")]
    assert len(lines) == 1 and words in lines[0]
    assert "Traceback" not in out.err
    assert not list(tmp_path.rglob("records.jsonl"))


@pytest.mark.parametrize("args", [["collapse", "--train.lr", "fast"], ["collapse", "--train.lrr", "1"]])
def test_an_unknown_option_or_value_exits_with_2(args: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["collapse", "--model.width", "8", "--model.depth", "1", "--train.epochs", "1", "--measure.robustness", "0"]
    args += ["--measure.points", "2", "--measure.subsample", "50", "--out", str(tmp_path), "--no-report"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
    try:
        assert main(args) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    out = capsys.readouterr()
    lines = [line for line in out.err.splitlines() if line.startswith("nucleate: ")]
    assert len(lines) == 1 and "cannot write" in lines[0] and "Traceback" not in out.err
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("DONE"))
    assert main(args) == 0
    assert len(list(tmp_path.rglob("DONE"))) == 1
