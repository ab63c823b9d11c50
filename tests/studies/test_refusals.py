"""Every study with a command of its own: nonsense is one clear line, and `--on ray` reaches the cluster's executor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleate.cli import main
from nucleate.runs import sweep

NOISE = ["--data.label-noise", "1.5"], "1.5"
SAMPLES = ["--data.train-size", "99999"], "train_size"
WIDTH = ["--model.width", "0"], "width"
DEVICE = ["--train.device", "cuda:99"], "train.device is 'cuda:99', but this computer has cpu"
WIDTHS = ["--widths", "0"], "widths"
THREADS = ["--train.threads", "0"], "train.threads must be a number above 0, not 0"
NONSENSE: dict[str, list[tuple[list[str], str]]] = {
    "descent digits-features": [DEVICE, NOISE, SAMPLES, WIDTHS, (["--noises", "0.1", "1.5"], "1.5")],
    "descent digits-mlp": [DEVICE, NOISE, SAMPLES, THREADS, WIDTHS, (["--samples", "99999"], "")],
    "memorise digits": [NOISE, SAMPLES, THREADS, WIDTHS, (["--noises", "1.5"], "1.5")],
    "lazy digits-quick": [NOISE, SAMPLES, WIDTHS, (["--noises", "1.5"], "1.5")],
    "bias edge": [NOISE, SAMPLES, (["--width", "0"], "width")],
    "collapse digits-mlp": [DEVICE, NOISE, SAMPLES, THREADS, WIDTH],
    "compare digits-mlp --jobs 1": [DEVICE, NOISE, SAMPLES, THREADS, WIDTH],
    "tickets digits-lenet": [DEVICE, NOISE, SAMPLES, THREADS, WIDTH],
    "capacity digits-lenet": [DEVICE, NOISE, SAMPLES, THREADS, WIDTH],
    "connectivity digits-lenet": [DEVICE, NOISE, SAMPLES, THREADS, WIDTH],
    "supermask digits-mlp": [DEVICE, NOISE, SAMPLES, THREADS, (["--widths", "0"], "width")],
}
CASES = [(command, *case) for command, cases in NONSENSE.items() for case in cases]


@pytest.mark.parametrize(("command", "given", "says"), CASES, ids=[f"{c} {g[0]}" for c, g, _ in CASES])
def test_nonsense_is_one_line(
    command: str,
    given: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), *given]) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("nucleate: ")]
    assert says in line and "Traceback" not in err
    assert not list(tmp_path.rglob("DONE"))


@pytest.mark.parametrize(
    "command", ["lazy digits-quick --widths 4 --steps 2 --seeds 0 --noises", "bias min-norm --steps 8 --seeds 0"]
)
def test_ray_is_asked(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def on_ray(work: Any, cells: Any, pending: Any, jobs: int, tick: Callable[[int, int], None]) -> Any:
        asked.append(len(cells))
        return sweep.run_serially(work, cells, pending, jobs, tick)

    monkeypatch.setitem(sweep.EXECUTORS, "ray", on_ray)
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--on", "ray", "--no-report"]) == 0
    assert asked == [1]
