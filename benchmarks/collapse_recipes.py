"""What recipes reach, seed by seed: zero error, and the four measures of collapse there and at the end.

    python benchmarks/collapse_recipes.py digits-mlp --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/collapse_recipes.py mnist-mlp fashion-convnet --data-root DATA --threads 2

Prints a Markdown table. Runs are kept in --out: what is finished there is read, not run again. CPU seconds are the
process's own, nan for a run that was read.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nucleate.recipes.collapse import recipe
from nucleate.runs import Run
from nucleate.studies.collapse import run, size

MEASURES = ("nc1", "nc2_equinorm", "nc2_equiangle", "nc3", "nc4")


def row(made: Run, cpu: float) -> dict[str, Any]:
    """Numbers of one finished run."""
    table = {(r["layer"], r["split"], r["metric"]): r for r in made.table()}
    kept = made.select(metric="zero_error_kept")[-1]["value"]
    found: dict[str, Any] = {
        "recipe": made.spec["recipe"],
        "seed": made.spec["seed"],
        "epochs": made.spec["train"]["epochs"],
        "zero error at": made.env["zero_error_epoch"],
        "kept": f"{kept:.2f}",
    }
    for measure in MEASURES:
        pair = table[("penultimate", "train", measure)]
        found[measure] = f"{pair['zero']:.4g} -> {pair['end']:.4g}"
    pair = table[("", "test", "accuracy")]
    found["test accuracy"] = f"{pair['zero']:.4f} -> {pair['end']:.4f}"
    return found | {"wall s": f"{made.env['seconds']:.0f}", "CPU s": f"{cpu:.0f}"}


def main() -> None:
    """Run, or read, every recipe at every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s)\n", flush=True)
    header = False
    for name in options.recipes:
        for seed in options.seeds:
            spec = recipe(name)
            spec = replace(spec, seed=seed, train=replace(spec.train, threads=options.threads))
            steps = 0

            def tick(n: int) -> None:
                nonlocal steps
                steps += n

            begun, before = time.perf_counter(), time.process_time()
            made = run(spec, root=options.out, data_root=options.data_root, tick=tick)
            cpu = time.process_time() - before
            fresh = steps == size(spec) and time.perf_counter() - begun >= made.env["seconds"]
            cells = row(made, cpu if fresh else math.nan)
            if not header:
                print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells), flush=True)
                header = True
            print("| " + " | ".join(map(str, cells.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
