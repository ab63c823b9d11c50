"""What records, checkpoints and probes cost: a LeNet-300-100 collapse run at the default cadence.

    python benchmarks/overhead.py [--epochs 100] [--data mnist]

Processor time of one run, split: inside the epochs of training, and everything else (training error, measures, attacks,
neighbours, records, checkpoints). Exit code 1 above 5 %; without the data nothing is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from torch import nn

from nucleate.data import DataError, load
from nucleate.models.mlp import MLP
from nucleate.spec import CollapseSpec, DataSpec, MeasureSpec, ModelSpec, TrainSpec
from nucleate.studies.collapse import run
from nucleate.training import Training

PROMISED = 0.05


def lenet(inputs: tuple[int, ...], classes: int) -> MLP:
    """LeNet-300-100 (LeCun et al. 1998)."""
    model = MLP(math.prod(inputs), classes, width=300, depth=2)
    model.hidden[1].linear = nn.Linear(300, 100)
    model.classifier = nn.Linear(100, classes)
    return model


def main(argv: list[str] | None = None) -> int:
    """Print the share; exit code 1 if it is above the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=TrainSpec().epochs)
    parser.add_argument("--data", default="mnist")
    args = parser.parse_args(argv)
    spec = CollapseSpec(
        recipe="overhead",
        data=DataSpec(name=args.data),
        model=ModelSpec(name="benchmarks.overhead:lenet"),
        train=TrainSpec(optimizer="adam", lr=1.2e-3, weight_decay=0.0, batch_size=60, epochs=args.epochs, threads=1),
        measure=MeasureSpec(),
    )
    try:
        load(spec.data)
    except DataError as error:
        print(f"not measured: {error}")
        return 0
    sys.path.insert(0, str(Path(__file__).parent.parent))
    inside = [0.0]
    plain = Training._run_epoch

    def timed(self: Training) -> float:
        start = time.process_time()
        try:
            return plain(self)
        finally:
            inside[0] += time.process_time() - start

    Training._run_epoch = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(replace(spec, seed=1, train=replace(spec.train, epochs=1)), root=Path(folder))  # imports
            inside[0] = 0.0
            start = time.process_time()
            run(spec, root=Path(folder))
            whole = time.process_time() - start
    finally:
        Training._run_epoch = plain  # type: ignore[method-assign]
    share = (whole - inside[0]) / inside[0]
    print(f"{args.data}, {args.epochs} epochs: training {inside[0]:.1f} s, everything else {whole - inside[0]:.1f} s")
    print(f"overhead {share:.1%} (promised below {PROMISED:.0%})")
    return 0 if share < PROMISED else 1


if __name__ == "__main__":
    raise SystemExit(main())
