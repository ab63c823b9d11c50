"""What each experiment of the claims' quick tier costs, alone, in one process on one thread.

    python benchmarks/claims_arms.py
    python benchmarks/claims_arms.py ladder prune-synflow --each 3

Prints a Markdown table. Seeds count from 100, which no verdict uses. An experiment with one run a seed is run
for `--each` of its ten seeds, and the total is what ten would take. Runs go to a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nucleate.claims.arms import SEEDS
from nucleate.claims.registry import ARMS
from nucleate.studies.cells import run_specs

FIRST = 100


def cells(spec: Any, each: int) -> tuple[list[Any], float]:
    """Runs to make, and by what their cost is multiplied to be that of all seeds."""
    inside = getattr(spec, "seeds", 1)
    if isinstance(inside, tuple):
        count = max(SEEDS["quick"], len(inside))
        return [replace(spec, seeds=tuple(range(FIRST, FIRST + count)))], 1.0
    if inside != 1:
        return [replace(spec, seed=FIRST, seeds=SEEDS["quick"])], 1.0
    return [replace(spec, seed=FIRST + i) for i in range(each)], SEEDS["quick"] / each


def main() -> None:
    """Run every experiment and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--each", type=int, default=1)
    options = parser.parse_args()
    print("| experiment | runs | CPU s of these | CPU s of all seeds |\n|---|---|---|---|")
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        # What a process pays once, not an experiment.
        run_specs([replace(ARMS["width-2"]("quick"), seed=FIRST - 1)], root=Path(folder), progress=False)
        for name in options.arms:
            specs, times = cells(ARMS[name]("quick"), options.each)
            begun = time.process_time()
            run_specs(specs, root=Path(folder), threads=1, progress=False)
            spent = time.process_time() - begun
            total += spent * times
            print(f"| {name} | {len(specs)} | {spent:.2f} | {spent * times:.1f} |", flush=True)
    print(f"\n{total:.0f} CPU seconds in all; torch {torch.__version__}")


if __name__ == "__main__":
    main()
