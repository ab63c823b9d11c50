"""What a sweep would still have to do: missing cells, with an estimate of their time and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nucleate.machine.tuning import Tuning
from nucleate.runs import Run, RunError, find_runs
from nucleate.spec import TrainSpec, to_dict
from nucleate.studies.cells import size_of
from nucleate.studies.setting import TrainingSpec, prepare
from nucleate.training import Training
from nucleate.training.loop import batches

CALIBRATION_STEPS = 30


@dataclass(frozen=True)
class Estimate:
    """Cells that are missing, and what they would take."""

    missing: list[Any]
    """Specs of the cells without a finished run."""
    seconds: float
    """Of one process for all of them, one after another."""
    memory: int
    """Bytes of one process, at its largest."""
    basis: str
    """What the seconds were measured on."""


def estimate(specs: Sequence[Any], *, root: Path, data_root: Path | None = None) -> Estimate:
    """Find the missing cells of a sweep and estimate their cost.

    Seconds for one unit of a cell's size (an epoch, mostly) come from the finished runs of the same study and recipe
    where there are any, else from a calibration: some training steps of the first missing cell, timed here on one
    thread, measures not included. Memory is what this process took at its largest in the calibration.

    Raises:
        ValueError: for data or a model that cannot be used.
    """
    finished = _finished(root)
    done = [run.spec for run in finished]
    missing = [spec for spec in specs if to_dict(spec) not in done]
    if not missing:
        return Estimate([], 0.0, 0, "nothing is missing")
    rate, basis = _measured_rate(missing[0], finished), "finished runs of the same recipe"
    if hasattr(missing[0], "train"):
        calibrated = _calibrate(missing[0], data_root)
        if rate is None:
            rate, basis = calibrated, f"{CALIBRATION_STEPS} training steps of the first missing cell, without measures"
    if rate is None:
        raise ValueError(f"the study {missing[0].study!r} cannot be calibrated: run one cell, then ask again")
    return Estimate(missing, rate * sum(map(size_of, missing)), _peak_memory(), basis)


def _finished(root: Path) -> list[Run]:
    try:
        return [run for run in find_runs(root) if run.done]
    except RunError:
        return []


def _measured_rate(spec: Any, finished: Sequence[Run]) -> float | None:
    """Seconds for a unit of size, over finished runs of the spec's study and recipe."""
    mine = [r for r in finished if (r.spec.get("study"), r.spec.get("recipe")) == (spec.study, spec.recipe)]
    seconds = [float(r.env["seconds"]) for r in mine if "seconds" in r.env]
    return sum(seconds) / (len(seconds) * size_of(spec)) if seconds else None


def _calibrate(spec: TrainingSpec, data_root: Path | None) -> float:
    """Seconds of one epoch."""
    setting = prepare(spec, data_root, 1)
    train: TrainSpec = spec.train
    tuning = Tuning(**{**setting.env["tuning"], "threads": 1})
    inputs, labels = setting.data.train_inputs, setting.data.train_labels
    few = min(len(inputs), CALIBRATION_STEPS * train.batch_size)
    training = Training(
        setting.model, inputs[:few], labels[:few], setting.data.num_classes, train, tuning, seed=spec.seed
    )
    epochs = iter(training)
    next(epochs)
    next(epochs)
    start = time.monotonic()
    next(epochs)
    steps = len(batches(few, train.batch_size, seed=0, epoch=0))
    whole = len(batches(len(inputs), train.batch_size, seed=0, epoch=0))
    return (time.monotonic() - start) * whole / steps


def _peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
