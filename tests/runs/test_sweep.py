"""Sweeps: workers and parents that are killed, cells that others hold."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nucleate.runs import BusyError, find_runs, write_run
from nucleate.runs.sweep import DEATHS, EXECUTORS, Tick, run_cells, share
from nucleate.spec import CollapseSpec

STEPS = 5
PARENT = """
import sys
from pathlib import Path
import test_sweep
test_sweep.sweep(Path(sys.argv[1]), int(sys.argv[2]), jobs=2)
"""


def count_up(cell: tuple[Path, int], tick: Tick) -> str:
    """A run of five slow steps, each of which depends on the one before."""
    root, seed = cell
    with write_run(root, CollapseSpec(seed=seed), env={}) as writer:
        if writer.done:
            tick(STEPS)
            return str(writer.path)
        state = writer.restore()
        value = int(state) if state else seed
        first = len(writer.records)
        tick(first)
        for step in range(first, STEPS):
            time.sleep(0.05)
            value = value * 3 + step
            writer.append([{"seed": seed, "step": step, "metric": "value", "value": value}])
            writer.checkpoint(str(value).encode())
            tick(1)
        with (root / "ends").open("a") as file:
            file.write(f"{seed}\n")
        writer.finish()
        return str(writer.path)


def sweep(root: Path, cells: int, **how: object) -> list[str]:
    root.mkdir(exist_ok=True)
    work = [(root, seed) for seed in range(cells)]
    return run_cells(count_up, work, sizes=[STEPS] * cells, progress=False, **how)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {run.path.name: (run.path / "records.jsonl").read_bytes() for run in find_runs(root)}


def ended(root: Path) -> int:
    return len(list(root.glob("*/DONE")))


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_sweep_whose_workers_and_parent_are_killed_ends_complete_and_equal(tmp_path: Path) -> None:
    cells, dice = 16, random.Random(3)
    sweep(tmp_path / "whole", cells, executor="serial")
    command = [sys.executable, "-c", PARENT, str(tmp_path / "killed"), str(cells)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    for victim in ("parent", "parent", "worker"):
        done = ended(tmp_path / "killed")
        process = subprocess.Popen(command, env=env)
        until = time.monotonic() + 60
        while time.monotonic() < until and ended(tmp_path / "killed") == done:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 0.3))
        assert process.poll() is None
        os.kill(children(process.pid)[-1] if victim == "worker" else process.pid, signal.SIGKILL)
        assert process.wait() == (0 if victim == "worker" else -signal.SIGKILL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all(run.done for run in find_runs(tmp_path / "killed"))
    ends = (tmp_path / "killed" / "ends").read_text().split()
    assert sorted(map(int, ends)) == list(range(cells))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_an_interrupt_ends_workers_that_still_import_without_a_word_of_theirs(tmp_path: Path) -> None:
    # What runs in the background of a shell ignores Ctrl-C, and so does what it starts.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", listening + PARENT, str(tmp_path / "stopped"), "4"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and len(children(process.pid)) < 3:
        time.sleep(0.02)
    workers = children(process.pid)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.count("Traceback") == 1, err
    assert "spawn_main" not in err
    assert not any(Path(f"/proc/{worker}/exe").exists() for worker in workers)


def test_two_sweeps_that_overlap_share_the_cells(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            sweep(tmp_path / "a", 8, executor="serial")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    first = sweep(tmp_path / "a", 8, executor="serial")
    thread.join()
    assert not errors and len(set(first)) == 8
    ends = (tmp_path / "a" / "ends").read_text().split()
    assert sorted(map(int, ends)) == list(range(8))


def test_a_cell_that_another_holds_is_waited_for(tmp_path: Path) -> None:
    with write_run(tmp_path, CollapseSpec(seed=1), env={}) as writer:
        pass
    lock = (writer.path / ".lock").open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(BusyError), write_run(tmp_path, CollapseSpec(seed=1), env={}):
        pass
    threading.Timer(0.3, lock.close).start()
    assert len(sweep(tmp_path, 3)) == 3
    assert all(run.done for run in find_runs(tmp_path))


def die(cell: int, tick: Tick) -> int:
    os._exit(3)


def fail(cell: int, tick: Tick) -> int:
    raise ValueError(f"cell {cell} cannot be")


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_the_error_of_a_cell_is_the_error_of_the_sweep(executor: str) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        run_cells(fail, [1, 2], sizes=[1, 1], jobs=2, executor=executor, progress=False)  # type: ignore[arg-type]


def test_the_bar_counts_in_its_unit_and_goes_when_a_cell_fails(capsys: pytest.CaptureFixture[str]) -> None:
    run_cells(lambda cell, tick: tick(1), [1], sizes=[1], unit="network")
    assert "1/1" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(ValueError, match="cannot be"):
        run_cells(fail, [1], sizes=[1], unit="network")
    shown = capsys.readouterr().err
    assert "?network/s" in shown and not shown.splitlines()[-1].strip()


def test_workers_that_always_die_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nucleate.runs.sweep.DEATHS", 2)
    assert DEATHS > 2
    with pytest.raises(ValueError, match="2 times in a row"):
        run_cells(die, [1, 2], sizes=[1, 1], jobs=2, executor="processes", progress=False)


def test_numbers_that_make_no_sweep_are_refused() -> None:
    run: Callable[..., object] = run_cells
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        run(fail, [1], sizes=[1], jobs=0)
    with pytest.raises(ValueError, match="one of serial, processes, ray"):
        run(fail, [1], sizes=[1], executor="slurm")
    for part in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(ValueError, match="--only"):
            share([1, 2], part)


def test_the_parts_of_an_array_job_make_the_whole() -> None:
    parts = [share(list(range(11)), f"{i}/4") for i in range(1, 5)]
    assert sorted(i for part in parts for i in part) == list(range(11))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.filterwarnings("ignore")
def test_on_ray_as_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    sweep(tmp_path / "whole", 3, executor="serial")
    sweep(tmp_path / "ray", 3, jobs=2, executor="ray")
    assert contents(tmp_path / "ray") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="cannot be"):
        run_cells(fail, [1], sizes=[1], executor="ray", progress=False)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nucleate\[ray\]"):
        sweep(tmp_path, 2, executor="ray")


def test_every_executor_is_known_by_name() -> None:
    assert list(EXECUTORS) == ["serial", "processes", "ray"]
