"""Global selection against torch.nn.utils.prune, and what holding masks costs a training step; one thread.

python benchmarks/pruning.py [--quick] [--repeats 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from nucleate.pruning.prune import prune
from nucleate.pruning.pruner import Pruner
from nucleate.pruning.scores import scores
from nucleate.pruning.select import select

TENSORS, SIDE = 24, 1024
TARGET_TIME, TARGET_MEMORY, TARGET_STEP = 12.0, 15.0, 1.05


def network() -> nn.Sequential:
    """25 million weights in 24 tensors."""
    model = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(TENSORS)))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.02, generator=generator)
    return model


def selection(who: str, density: float) -> dict[str, float]:
    """CPU seconds and extra peak memory in bytes of one global selection, in a process of its own."""
    torch.set_num_threads(1)
    model = network()
    warm = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    run(who, warm, density)
    before = peak()
    start = time.process_time()
    kept = run(who, model, density)
    seconds = time.process_time() - start
    return {"seconds": seconds, "bytes": peak() - before, "kept": kept}


def run(who: str, model: nn.Sequential, density: float) -> int:
    """Prune globally by magnitude; the number of weights that stay."""
    if who == "nucleate":
        return prune(model, "magnitude", density, include=("output",)).masks.kept
    if who == "nucleate, second round":
        first = prune(model, "magnitude", 0.5, include=("output",)).masks
        return prune(model, "magnitude", density, include=("output",), masks=first).masks.kept
    if who == "torch":
        global_unstructured([(m, "weight") for m in model], L1Unstructured, amount=1 - density)  # type: ignore[no-untyped-call]
        return sum(int(m.weight_mask.sum()) for m in model)  # type: ignore[operator,misc]
    values = torch.cat([p.detach().abs().flatten() for p in model.parameters()])
    threshold = values.kthvalue(len(values) - int(density * len(values)) + 1).values
    return sum(int((p.detach().abs() >= threshold).sum()) for p in model.parameters())


def peak() -> int:
    """Largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(who: str, density: float) -> dict[str, float]:
    """`selection` in a new process, so that peaks do not hide each other."""
    command = [sys.executable, __file__, "--one", who, str(density)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {k: float(v) for k, v in json.loads(done.stdout).items()}


def same_set(density: float) -> int:
    """Weights on which the two disagree: none but ties."""
    model = network()
    mine = select(scores(model, "magnitude", include=("output",)), density)
    run("torch", model, density)
    return sum(int((mine[f"{i}.weight"] != m.weight_mask).sum()) for i, m in enumerate(model))  # type: ignore[arg-type]


def step(sizes: list[int], batch: int, density: float, repeats: int) -> tuple[float, float, float]:
    """Median seconds of a dense and of a masked training step, and of one more dense one: the noise."""
    torch.set_num_threads(1)
    parts: list[Callable[[], None]] = []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, sizes[0], generator=generator)
    y = torch.randint(sizes[-1], (batch,), generator=generator)
    for masked in (False, True, False):
        model = nn.Sequential()
        for a, b in itertools.pairwise(sizes):
            model.extend([nn.Linear(a, b), nn.ReLU()])
        model = model[:-1]
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        pruner = Pruner(model, optimizer, "magnitude", density, include=("output",)) if masked else None

        def one(
            model: nn.Module = model, optimizer: torch.optim.Adam = optimizer, pruner: Pruner | None = pruner
        ) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()

        parts.append(one)
    times: list[list[float]] = [[], [], []]
    for _ in range(repeats):
        for i, one in enumerate(parts):
            start = time.process_time()
            for _ in range(5):
                one()
            times[i].append((time.process_time() - start) / 5)
    medians = [statistics.median(t) for t in times]
    return medians[0], medians[1], medians[2]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(selection(options.one[0], float(options.one[1]))))
        return
    repeats = 1 if options.quick else options.repeats
    print(f"Global magnitude pruning of {TENSORS * SIDE * SIDE:,} weights in {TENSORS} tensors, one thread, CPU time")
    print(f"{'':28}" + "".join(f"{f'density {d}':>34}" for d in (0.5, 0.1)))
    table: dict[str, list[dict[str, float]]] = {}
    for who in ("nucleate", "torch", "cat + kthvalue", "nucleate, second round"):
        table[who] = []
    for density in (0.5, 0.1):
        runs: dict[str, list[dict[str, float]]] = {who: [] for who in table}
        for _ in range(repeats):
            for who in table:
                if who != "nucleate, second round" or density == 0.1:
                    runs[who].append(alone(who, density))
        for who, found in runs.items():
            if found:
                table[who].append({k: statistics.median(f[k] for f in found) for k in found[0]})
    for who, rows in table.items():
        cells = "".join(f"{r['seconds']:>14.3f} s {r['bytes'] / 2**20:>9.1f} MiB    " for r in rows)
        print(f"{who:28}{cells if len(rows) == 2 else ' ' * 31 + cells}")
    for i, density in enumerate((0.5, 0.1)):
        mine = table["nucleate"][i]
        for other in ("torch", "cat + kthvalue"):
            them = table[other][i]
            faster, less = them["seconds"] / mine["seconds"], them["bytes"] / mine["bytes"]
            goal = ""
            if other == "torch":
                met = faster >= TARGET_TIME and less >= TARGET_MEMORY
                goal = f"   (promised {TARGET_TIME:g}x, {TARGET_MEMORY:g}x: {'met' if met else 'MISSED'})"
            print(f"density {density}: {faster:.1f}x faster, {less:.1f}x less extra memory than {other}{goal}")
        print(
            f"density {density}: {same_set(density)} weights kept differently from torch; the masks take "
            f"{TENSORS * SIDE * SIDE / 2**20:.0f} MiB of the extra memory"
        )
    print("\nOne training step, fused Adam, density 0.1, median CPU time")
    for name, sizes, batch in (
        ("LeNet-300-100, batch 60", [784, 300, 100, 10], 60),
        ("784-1024-1024-10, batch 64", [784, 1024, 1024, 10], 64),
        ("4 x 2048, batch 128", [2048] * 5, 128),
    ):
        dense, masked, again = step(sizes, batch, 0.1, 20 if options.quick else 100 if sizes[0] == 784 else 20)
        ratio = masked / min(dense, again)
        met = "met" if ratio <= TARGET_STEP else "MISSED"
        print(
            f"{name:28}{1e3 * dense:8.3f} ms dense {1e3 * masked:8.3f} ms masked   ratio {ratio:.3f}"
            f"   dense again {again / dense:.3f}   (promised {TARGET_STEP}: {met})"
        )


if __name__ == "__main__":
    main()
