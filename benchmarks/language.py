"""Magnitude, Wanda and SparseGPT on a byte-level language model at 50 %, 2:4 and 4:8, with intervals over seeds.

    python benchmarks/language.py --seeds 0 1 2 3 4
    python benchmarks/language.py --full

A network of two blocks of width 64 on 4,000 windows of 32 bytes, minutes; `--full` takes the recipe bytes-transformer
as it is, five minutes and more a seed on one core. The text is Python's own standard library. Prints Markdown tables:
held-out loss in nats a byte after pruning, no training after it, and differences between methods paired over seeds,
each with Student's 95 % interval. Runs are kept in --out: what is finished there is read, not run again. Last come peak
sizes of calibration (Linux), each in a process of its own: the most resident memory above what the process held before,
beside one block's activations and the model, and the same for forward passes alone. "held": where the C library gives
back what is freed at once (MALLOC_MMAP_THRESHOLD_); "resident": as it is, with what the library keeps for later.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from scipy import stats

from nucleate.models.transformer import Transformer
from nucleate.pruning.prune import prune
from nucleate.pruning.reconstruct import reconstruct
from nucleate.recipes.compare import recipe
from nucleate.studies.cells import run_specs
from nucleate.studies.compare import parent

SHAPES = ("weight", "2:4", "4:8")
METHODS = ("random", "magnitude", "wanda", "sparsegpt")
PAIRS = (("wanda", "magnitude"), ("sparsegpt", "wanda"), ("sparsegpt", "magnitude"))
WIDTH, LENGTH, BATCH, BATCHES = 256, 256, 32, 3


def interval(values: list[float]) -> str:
    """Mean and half width of Student's 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.4f} +- {half:.4f}"


def losses(seeds: list[int], out: Path, *, full: bool) -> None:
    """Run, or read, all cells, and print the tables."""
    base = recipe("bytes-transformer")
    if not full:
        base = replace(
            base,
            recipe="bytes-transformer-small",
            data=replace(base.data, context=32, train_size=4000, test_size=400),
            model=replace(base.model, width=64, depth=2),
            train=replace(base.train, lr=3e-3),
        )
    run_specs([parent(replace(base, seed=s)) for s in seeds], root=out, label="dense")
    cells = [
        replace(base, seed=s, densities=(0.5,), prune=replace(base.prune, method=m, shape=shape))
        for shape in SHAPES
        for m in METHODS
        for s in seeds
    ]
    runs = run_specs(cells, root=out, label="pruned")
    found: dict[tuple[str, str], list[float]] = {}
    dense: list[float] = []
    for cell, run in zip(cells, runs, strict=True):
        rows = {r["epoch"]: float(r["value"]) for r in run.select(metric="loss", split="test", layer="")}
        found.setdefault((cell.prune.method, cell.prune.shape), []).append(rows[1])
        if (cell.prune.method, cell.prune.shape) == (METHODS[0], SHAPES[0]):
            dense.append(rows[0])
    print(f"\nheld-out loss, nats a byte, {len(seeds)} seeds; dense {interval(dense)}\n")
    print("| method | " + " | ".join("50 %" if s == "weight" else s for s in SHAPES) + " |\n|" + "---|" * 4)
    for m in METHODS:
        print(f"| {m} | " + " | ".join(interval(found[m, s]) for s in SHAPES) + " |")
    for a, b in PAIRS:
        cells_ = (interval([x - y for x, y in zip(found[a, s], found[b, s], strict=True)]) for s in SHAPES)
        print(f"| {a} - {b} | " + " | ".join(cells_) + " |")


def resident(field: str) -> int:
    """Bytes of a field of this process: VmRSS now, VmHWM the most since /proc/self/clear_refs was told to forget."""
    found = re.search(field + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def calibration(method: str, depth: int) -> dict[str, float]:
    """Peak resident bytes of pruning above those of the model and its data, and the parts it is compared with."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Transformer(LENGTH, 256, width=WIDTH, depth=depth).requires_grad_(False).eval()
    batches = [(torch.randint(0, 256, (BATCH, LENGTH)), None) for _ in range(BATCHES)]
    with torch.no_grad():
        net(batches[0][0][:1])  # what libraries load at their first call is not the method's
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    if method == "forward":
        with torch.no_grad():
            for inputs, _ in batches:
                net(inputs)
    elif method == "sparsegpt":
        reconstruct(net, batches, 0.5, layers="blocks*")
    else:
        prune(net, method, 0.5, batches=batches, scope="layer", layers="blocks*")
    extra = resident("VmHWM") - before
    # norms, q, k, v, mixed, out, two sums, up, act, down
    block = 4 * BATCH * LENGTH * WIDTH * 18
    return {"extra": extra, "block": block, "model": 4 * sum(p.numel() for p in net.parameters())}


def main() -> None:
    """Losses, then memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("METHOD", "DEPTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(calibration(options.memory[0], int(options.memory[1]))))
        return
    losses(options.seeds, options.out, full=options.full)
    print("\n| calibration | blocks | one block's activations + model, MiB | held MiB | ratio | resident MiB | ratio |")
    print("|" + "---|" * 7)
    for method in ("forward", "wanda", "sparsegpt"):
        for depth in (4, 12):
            asked = [sys.executable, __file__, "--memory", method, str(depth)]
            row = []
            for env in ({"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}, {}):
                done = subprocess.run(asked, capture_output=True, text=True, check=True, env=os.environ | env)
                m = json.loads(done.stdout)
                bound = m["block"] + m["model"]
                row += [f"{m['extra'] / 2**20:.0f}", f"{m['extra'] / bound:.2f}"]
            print(f"| {method} | {depth} | {bound / 2**20:.0f} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
