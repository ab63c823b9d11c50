"""A sweep killed at random moments: complete at the end, no cell ended twice, records equal to a serial run's.

    python benchmarks/sweep_kills.py [--cells 200] [--kills 20] [--ray] [--nodes] [--digits]

Every cell is a run folder whose five steps each depend on the one before and are checkpointed; with --digits it is a
collapse study of a small network on the bundled digits, five epochs with a checkpoint after each. At each random moment
either a worker or the parent of the sweep gets `kill -9`; a killed parent is started again. With --ray the same cells
run on a local Ray cluster of two workers, one of which is killed midway; with --nodes on one of two nodes, one of which
is. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nucleate.runs import find_runs, write_run
from nucleate.runs.sweep import Executor, Tick, run_cells
from nucleate.spec import CollapseSpec

STEPS = 5
STEP_SECONDS = 0.02


def count_up(cell: tuple[Path, int], tick: Tick) -> str:
    """Five slow steps with a checkpoint after each; notes in `ends` that it came to its end."""
    root, seed = cell
    with write_run(root, CollapseSpec(seed=seed), env={"worker": os.getpid()}) as writer:
        if writer.done:
            tick(STEPS)
            return str(writer.path)
        state = writer.restore()
        value = int(state) if state else seed
        first = len(writer.records)
        tick(first)
        for step in range(first, STEPS):
            time.sleep(STEP_SECONDS)
            value = value * 3 + step
            writer.append([{"seed": seed, "step": step, "metric": "value", "value": value}])
            writer.checkpoint(str(value).encode())
            tick(1)
        writer.finish()
        with (root / "ends").open("a") as file:
            file.write(f"{seed}\n")
        return str(writer.path)


def train(cell: tuple[Path, int], tick: Tick) -> str:
    """A collapse study of STEPS epochs; notes in `ends` that it came to its end."""
    from nucleate.recipes.collapse import recipe
    from nucleate.studies import collapse

    root, seed = cell
    spec = recipe("digits-mlp")
    spec = replace(
        spec,
        seed=seed,
        model=replace(spec.model, width=16, depth=1),
        train=replace(spec.train, epochs=STEPS),
        # 1 log-spaced epoch for each: every epoch is measured and kept.
        measure=replace(spec.measure, points=2 * STEPS, robustness=20, subsample=50, picture=20),
    )
    begun = time.time_ns()
    path = collapse.run(spec, root=root, threads=1, tick=tick).path
    if (path / "DONE").stat().st_mtime_ns > begun:
        with (root / "ends").open("a") as file:
            file.write(f"{seed}\n")
    return str(path)


CELLS: dict[str, Callable[[tuple[Path, int], Tick], str]] = {"count": count_up, "digits": train}


def sweep(root: Path, cells: int, executor: Executor, kind: str) -> None:
    root.mkdir(exist_ok=True)
    work = [(root, seed) for seed in range(cells)]
    run_cells(CELLS[kind], work, sizes=[STEPS] * cells, jobs=2, executor=executor, progress=False)


def start(root: Path, cells: int, executor: str, kind: str) -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import sweep_kills as s\n"
    code += f"from pathlib import Path; s.sweep(Path({str(root)!r}), {cells}, {executor!r}, {kind!r})"
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | environment())


def environment() -> dict[str, str]:
    """What processes need to import this file."""
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}


def ended(root: Path) -> int:
    return len(list(root.glob("*/DONE")))


def workers(root: Path, parent: int) -> list[int]:
    """Processes that hold a lock of a cell of this sweep."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != parent:
            try:
                held = [str(f.readlink()) for f in (process / "fd").iterdir()]
            except OSError:
                continue
            if any(path.startswith(str(root)) and path.endswith(".lock") for path in held):
                found.append(int(process.name))
    return found


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def killed_sweep(root: Path, cells: int, kills: int, dice: random.Random, kind: str) -> tuple[int, int]:
    """Run the sweep to its end through all kills; returns how many hit workers and how many the parent."""
    process = start(root, cells, "processes", kind)
    moments = sorted(dice.uniform(0.02, 0.95) * cells for _ in range(kills))
    hits = {"worker": 0, "parent": 0}
    for moment in moments:
        while ended(root) < moment and process.poll() is None:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 3 * STEP_SECONDS))
        at_work = workers(root, process.pid)
        if dice.random() < 0.5 and at_work:
            kill(dice.choice(at_work))
            hits["worker"] += 1
        else:
            kill(process.pid)
            process.wait()
            hits["parent"] += 1
            process = start(root, cells, "processes", kind)
    if process.wait() != 0:
        raise SystemExit("the sweep ended with an error")
    return hits["worker"], hits["parent"]


def ray_sweep(root: Path, cells: int, kind: str) -> int:
    """Run the sweep on Ray and kill one worker midway; returns how many were killed."""
    process = start(root, cells, "ray", kind)
    at_work = halfway(root, cells, process)
    for pid in at_work[:1]:
        kill(pid)
    if process.wait() != 0:
        raise SystemExit("the sweep on Ray ended with an error")
    return len(at_work[:1])


def halfway(root: Path, cells: int, process: subprocess.Popen[bytes]) -> list[int]:
    """Wait until half of the cells have ended; who is at work then."""
    while ended(root) < cells // 2 and process.poll() is None:
        time.sleep(0.01)
    return workers(root, process.pid)


def node_sweep(root: Path, cells: int, kind: str) -> int:
    """Run the sweep on a Ray cluster of two nodes of one core and kill one midway; returns how many were at work."""
    from ray.cluster_utils import Cluster

    os.environ |= environment()
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        process = start(root, cells, "ray", kind)
        at_work = halfway(root, cells, process)
        while len(at_work) < 2 and process.poll() is None:
            at_work = workers(root, process.pid)
        cluster.remove_node(second, allow_graceful=False)
        if process.wait() != 0:
            raise SystemExit("the sweep on two nodes ended with an error")
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()
    return len(at_work)


def verdict(root: Path, whole: Path, cells: int) -> bool:
    runs, expected = (
        {r.path.name: (r.path / "records.jsonl").read_bytes() for r in find_runs(p)} for p in (root, whole)
    )
    ends = (root / "ends").read_text().split()
    # A kill between the mark DONE and the note leaves a cell without a note; none may have two.
    twice = len(ends) - len(set(ends))
    complete = all(run.done for run in find_runs(root)) and len(runs) == cells
    print(f"  complete: {complete}; ended twice: {twice}; records equal to the serial run's: {runs == expected}")
    return complete and not twice and runs == expected


def main(argv: list[str] | None = None) -> int:
    """Print what happened; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true", help="also on a local Ray cluster (extra `ray`)")
    parser.add_argument("--nodes", action="store_true", help="also on a local Ray cluster of two nodes")
    parser.add_argument("--digits", action="store_true", help="cells that train a network")
    args = parser.parse_args(argv)
    kind = "digits" if args.digits else "count"
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, cluster, nodes = (Path(folder) / name for name in ("whole", "killed", "ray", "nodes"))
        sweep(whole, args.cells, "serial", kind)
        begun = time.monotonic()
        hit = killed_sweep(killed, args.cells, args.kills, random.Random(args.seed), kind)
        print(f"{args.cells} cells, {hit[0]} workers and {hit[1]} parents killed, {time.monotonic() - begun:.0f} s")
        fine = verdict(killed, whole, args.cells)
        if args.ray:
            count = ray_sweep(cluster, args.cells, kind)
            print(f"{args.cells} cells on Ray, two workers, {count} killed midway")
            fine &= verdict(cluster, whole, args.cells) and count == 1
        if args.nodes:
            count = node_sweep(nodes, args.cells, kind)
            print(f"{args.cells} cells on two Ray nodes, {count} at work when one was killed midway")
            fine &= verdict(nodes, whole, args.cells) and count == 2
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
