"""Training what masks leave, against masked dense training with the same shortcuts: a step, and a whole ladder.

    python benchmarks/sparse_training.py [--quick]

One thread, processor time, in turns. The ladder needs MNIST below a data root; masks of single steps are random: their
time depends on how many weights are left, hardly on which.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nucleate.compact import native
from nucleate.compact.choose import measure
from nucleate.machine.matmul import medium_keeps_float32
from nucleate.machine.tuning import Tuning
from nucleate.pruning.masks import Masks
from nucleate.recipes.tickets import recipe
from nucleate.runs import Run
from nucleate.spec import TrainSpec
from nucleate.studies import tickets
from nucleate.training.steps import StepTraining
from nucleate.training.survivors import break_even


def train(quick: bool) -> None:
    """One training step: surviving weights only, against masked dense weights with the same shortcuts."""
    print(
        "\nTraining step, batch 60, CPU time; the classifier dense; break-even: density from which dense is as fast\n"
    )
    print("| net | optimizer | density | masked dense ms | sparse ms | ratio | target | break-even |")
    print("|---|---|---|---|---|---|---|---|")
    cases = [((784, 1024, 1024, 10), {0.1: 2.0, 0.05: 3.0}), ((784, 300, 100, 10), {0.1: 1.5, 0.05: 2.0})]
    if quick:
        cases = [((784, 64, 32, 10), {0.1: 0.0})]
    x, y = torch.randn(600, 784), torch.randint(10, (600,))
    steps = 1 if quick else 10
    tuning = Tuning(threads=1, fused=True, matmul="fast" if medium_keeps_float32() else "default")
    for sizes, targets in cases:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        net = nn.Sequential(*layers[:-1])
        for optimizer, (density, target) in itertools.product(("sgd", "adam"), targets.items()):
            spec = TrainSpec(optimizer=optimizer, lr=1e-4, batch_size=60, epochs=10**6, sparse=True)
            masks = Masks({f"{i}.weight": torch.rand(net[i].weight.shape) < density for i in (0, 2)})
            trainings = {
                name: StepTraining(copy.deepcopy(net), x, y, 10, spec, replace(tuning, sparse_below=below), masks=masks)
                for name, below in (("dense", 0.0), ("sparse", 1.0))
            }
            with torch.enable_grad():
                s = measure({n: lambda t=t: t.run(t.step + steps) for n, t in trainings.items()})
                below = break_even(net, list(masks), x, y, 10, spec, tuning)
            dense, sparse = (1e3 * s[name] / steps for name in ("dense", "sparse"))
            print(
                f"| {'-'.join(map(str, sizes))} | {optimizer} | {density:.0%} | {dense:.3f} | {sparse:.3f} "
                f"| {dense / sparse:.2f} | {target} | {below:.0%} |",
                flush=True,
            )


def ladder(quick: bool) -> None:
    """Twenty rounds of LeNet-300-100 on MNIST, an epoch a level: all that a run costs, its steps by level, its ends."""
    spec = recipe("lenet-300-100")
    rounds = 1 if quick else 20
    runs, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        for name, sparse, seed in (("masked dense", False, 0), ("sparse", True, 0), ("another seed", False, 1)):
            own = replace(
                spec,
                seed=seed,
                data=replace(spec.data, train_size=6000 if quick else None),
                train=replace(spec.train, epochs=1, sparse=sparse),
                ladder=replace(spec.ladder, rounds=rounds, controls=(), control_levels=()),
            )
            start = time.process_time()
            try:
                runs[name] = tickets.run(own, root=Path(folder), threads=1)
            except ValueError as error:
                print(f"\nladder: skipped, {error}")
                return
            seconds[name] = time.process_time() - start
        print(f"\nLadder of {rounds} rounds, LeNet-300-100 on MNIST, one epoch a level, seconds of CPU time.")
        print(
            "How far from the masked dense run the sparse one and another seed's masked dense one end, level by level:"
        )
        print("|difference of the weights| over |weights|, and test points that only one of two gets right.\n")
        print("| level | density | masked dense | sparse | ratio | weights | other seed | points | other seed |")
        print("|---|---|---|---|---|---|---|---|---|")
        density = {r["level"]: r["density"] for r in runs["sparse"].records}
        nearer = True
        for level in range(rounds + 1):
            dense, sparse = (runs[k].env["cpu_by_training"][f"{level}/ticket/0"] for k in ("masked dense", "sparse"))
            ends = {name: end(run, level) for name, run in runs.items()}
            mine, points = apart(ends["masked dense"], ends["sparse"])
            theirs, others = apart(ends["masked dense"], ends["another seed"])
            nearer &= mine < theirs and points < others
            print(
                f"| {level} | {density[level]:.1%} | {dense:.2f} | {sparse:.2f} | {sparse / dense:.2f} "
                f"| {mine:.2f} | {theirs:.2f} | {points:.2%} | {others:.2%} |"
            )
        whole = {name: seconds[name] for name in ("masked dense", "sparse")}
        print(
            f"| all, with data, evaluation, records | | {whole['masked dense']:.1f} | {whole['sparse']:.1f} "
            f"| {whole['sparse'] / whole['masked dense']:.2f} (asked: at most 0.6) | | | | |"
        )
        last = {k: [r["value"] for r in run.records if r["metric"] == "stop_accuracy"][-1] for k, run in runs.items()}
        print("test accuracy of the last level: " + ", ".join(f"{value:.2%} {name}" for name, value in last.items()))
        print(f"sparse nearer than another seed at every level, in both: {nearer}", flush=True)


def end(run: Run, level: int) -> tuple[Tensor, Tensor]:
    """Weights at the end of a level, in one vector, and which test points they get right."""
    tensors = {name.partition("/")[2]: value for name, value in run.tensors(f"level-{level:02d}-ticket").items()}
    weights = [torch.from_numpy(tensors[name]).flatten() for name in sorted(tensors) if name.startswith("weights/")]
    return torch.cat(weights), torch.from_numpy(tensors["correct_end"])


def apart(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Distance of the weights in units of the first ones' norm, and share of the test points judged otherwise."""
    distance = (one[0] - other[0]).norm() / one[0].norm()
    return float(distance), float((one[1] != other[1]).double().mean())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run at all")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"one thread; {native.status()}")
    train(quick)
    ladder(quick)


if __name__ == "__main__":
    main()
