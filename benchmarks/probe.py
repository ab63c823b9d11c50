"""A probe of every layer against plain forward passes of the same network, on the same batches in the same run.

python benchmarks/probe.py [--quick] [--repeats 3] [--threads 1] [--subsample 1000]

Beside the cached probes stands their floor: forward passes that do nothing but keep the features of the same layers,
in memory that is written for the first time, as a cache's is, or in a file that is read back once.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.models import build
from nucleate.probes.layers import probe
from nucleate.probes.tap import tap
from nucleate.spec import ModelSpec

MEASURES = ("outputs", "collapse", "points", "chi")
TARGETS = {"bounded memory": 2.3, "features in memory": 1.3, "features on disk": 1.3}
"""Forward passes that a probe may take; the floors beside them have none."""


@dataclass(frozen=True)
class Case:
    """One network and its points."""

    name: str
    spec: ModelSpec
    shape: tuple[int, ...]
    points: int
    batch: int
    channels_last: bool = False


CASES = [
    Case("MLP 784-4x1024-10", ModelSpec(name="mlp", width=1024, depth=4), (784,), 60_000, 1000),
    Case("ResNet-18, 32x32", ModelSpec(name="resnet", width=64, depth=2, batchnorm=True), (3, 32, 32), 256, 64),
]


def forward(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """One plain evaluation pass."""
    with torch.no_grad():
        for x, _ in batches:
            model(x)


def keep(model: nn.Module, batches: list[tuple[Tensor, Tensor]], layers: list[str], path: Path | None) -> None:
    """A forward pass that keeps the layers' features and reads them once."""
    kept: list[Tensor] = []
    with torch.no_grad(), tap(model, layers) as seen, contextlib.ExitStack() as stack:
        file = None if path is None else stack.enter_context(path.open("w+b", buffering=0))
        for x, _ in batches:
            model(x)
            for h in seen.values():
                if file is None:
                    kept.append(h)
                else:
                    h.numpy().tofile(file)
        if file is None:
            for h in kept:
                h.sum()
        else:
            file.seek(0)
            buffer = bytearray(1 << 22)
            while file.readinto(buffer):
                pass


def timed(function: Callable[[], Any]) -> float:
    """Processor seconds of all threads: other work on the machine counts less than in wall time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(case: Case, *, repeats: int, subsample: int, scale: float) -> list[str]:
    """Table rows of one case; passes and probes take turns, so that a slow spell hits both."""
    generator = torch.Generator().manual_seed(0)
    model = build(case.spec, case.shape, 10, generator=generator).eval()
    points = max(int(case.points * scale), 4 * case.batch)
    x = torch.randn(points, *case.shape, generator=generator)
    y = torch.randint(10, (points,), generator=generator)
    batches = list(zip(x.split(case.batch), y.split(case.batch), strict=True))
    ways: dict[str, Callable[[], Any]] = {
        "bounded memory": lambda: probe(model, batches, measures=MEASURES, subsample=subsample),
        "features in memory": lambda: probe(model, batches, measures=MEASURES, subsample=subsample, cache="memory"),
        "features on disk": lambda: probe(model, batches, measures=MEASURES, subsample=subsample, cache="disk"),
    }
    found = probe(model, batches, measures=MEASURES, subsample=subsample)
    classifier = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    taps = [f"input:{classifier}" if layer == "penultimate" else layer for layer in found.layers]
    folder = tempfile.TemporaryDirectory()
    ways["floor in memory"] = lambda: keep(model, batches, taps, None)
    ways["floor on disk"] = lambda: keep(model, batches, taps, Path(folder.name) / "features")
    forward(model, batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    plain: list[float] = []
    for _ in range(repeats):
        for name, way in ways.items():
            plain.append(timed(lambda: forward(model, batches)))
            seconds[name].append(timed(way))
    folder.cleanup()
    methods = ", ".join(f"{layer} {found.record(layer, 'nc1')['method']}" for layer in found.layers)
    print(f"{case.name}: {methods}\n", flush=True)
    base = statistics.median(plain)
    rows = []
    for name, values in seconds.items():
        ratio = statistics.median(values) / base
        target = TARGETS.get(name)
        told = "| |" if target is None else f"{target} | {'yes' if ratio <= target else 'NO'} |"
        rows.append(f"| {case.name} | {points:,} | {name} | {base:.2f} | {ratio:.2f} | {told}")
    return rows


def main() -> None:
    """Print a markdown table of ratios, and which way each layer took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the points, one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subsample", type=int, default=1000, help="points on which chi is taken")
    parser.add_argument("--only", default="", help="networks whose name begins so")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"threads {args.threads}, chi (k = 5) on {args.subsample} points, CPU time in forward passes, medians\n")
    table = []
    for case in (case for case in CASES if case.name.startswith(args.only)):
        repeats, scale = (1, 0.25) if args.quick else (args.repeats, 1.0)
        table += measure(case, repeats=repeats, subsample=args.subsample, scale=scale)
    print("| network | points | probe | forward pass, s | ratio | target | met |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
