"""Collapse: train past zero error and measure every layer on the way (Papyan, Han, Donoho 2020)."""

from __future__ import annotations

import inspect
import platform
import time
from pathlib import Path

import torch
from torch import nn

from nucleate.data import Dataset, load
from nucleate.machine.tuning import as_dict, choose_tuning, replay_tuning, tuned
from nucleate.models import build
from nucleate.runs import Run, write_run
from nucleate.runs.store import Writer
from nucleate.runs.sweep import Tick
from nucleate.spec import CollapseSpec
from nucleate.studies.snapshot import Snapshot
from nucleate.training import Epoch, Training

CHECKPOINT_SECONDS = 20.0
"""A kill loses at most this much training, beside the epochs since the last measure."""


def size(spec: CollapseSpec) -> int:
    """Epochs: what the progress bar counts."""
    return spec.train.epochs


def run(
    spec: CollapseSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Train one network into its terminal phase; returns its finished run folder.

    The terminal phase begins at the first epoch whose training error, in eval mode, is at most `train.error_floor`.
    Everything is measured at the start, at log-spaced epochs, at that epoch and at the end. A run that was stopped goes
    on from its last checkpoint, with the tuning it was begun with; a finished one is returned as it is.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    data = load(spec.data, data_root)
    content = {"data": data.digest, "source": _source(spec)}
    generator = torch.Generator().manual_seed(spec.seed)
    model = build(spec.model, data.input_shape, data.num_classes, generator=generator)
    convolutional = any(isinstance(m, nn.Conv2d) for m in model.modules())
    fresh = choose_tuning(
        precision=spec.train.precision,
        threads=spec.train.threads or threads,
        convolutional=convolutional,
        device=spec.train.device,
    )
    env = {
        "tuning": as_dict(fresh),
        "data": {"name": data.name, "digest": data.digest, "train": len(data.train_labels)},
        "class_names": list(data.class_names),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    with write_run(root, spec, env=env, **content) as writer:
        if writer.done:
            tick(spec.train.epochs)
            return Run(writer.path)
        tuning = replay_tuning(writer.env["tuning"])
        training = Training(
            model, data.train_inputs, data.train_labels, data.num_classes, spec.train, tuning, seed=spec.seed
        )
        begun = time.monotonic()
        _terminal_phase(writer, training, data, spec, tick)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def measured_epochs(epochs: int, points: int) -> set[int]:
    """The start, about `points` log-spaced epochs, and the end.

    >>> sorted(measured_epochs(100, 5))
    [0, 1, 3, 10, 32, 100]

    Raises:
        ValueError: for fewer than two points.
    """
    if points < 2:
        raise ValueError(f"measure.points must be at least 2, not {points}")
    return {0} | {round(epochs ** (i / (points - 1))) for i in range(points)}


def _terminal_phase(writer: Writer, training: Training, data: Dataset, spec: CollapseSpec, tick: Tick) -> None:
    snapshot = Snapshot(training.model, data, spec)
    zero, kept = -1, 0
    state = writer.restore()
    if state is not None:
        notes = training.load(state)
        zero, kept = notes["zero"], notes["kept"]
        tick(training.epoch)
    grid = measured_epochs(spec.train.epochs, spec.measure.points)
    last_checkpoint = time.monotonic()
    for epoch in training:
        first_zero = zero < 0 and epoch.fits
        if first_zero:
            zero = epoch.number
        kept += zero >= 0 and epoch.fits
        writer.append([_row(spec, epoch, "epoch_loss", epoch.loss)])
        if epoch.number in grid or first_zero:
            told = first_zero or epoch.number in (0, spec.train.epochs)
            with tuned(training.tuning):
                records, tensors = snapshot.measure(epoch, histograms=told)
            writer.save_tensors(f"epoch-{epoch.number:06d}", tensors)
            writer.append(records)
            writer.update_env(layers=snapshot.layers, zero_error_epoch=zero)
        if epoch.number == spec.train.epochs:
            share = kept / (epoch.number - zero + 1) if zero >= 0 else 0.0
            writer.append([_row(spec, epoch, "zero_error_kept", share)])
        if epoch.number in grid or first_zero or time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS:
            writer.checkpoint(training.state(zero=zero, kept=kept))
            last_checkpoint = time.monotonic()
        tick(1 if epoch.number else 0)


def _row(spec: CollapseSpec, epoch: Epoch, metric: str, value: float) -> dict[str, object]:
    return {
        "study": spec.study,
        "seed": spec.seed,
        "step": epoch.step,
        "epoch": epoch.number,
        "layer": "",
        "split": "train",
        "metric": metric,
        "value": value,
    }


def _source(spec: CollapseSpec) -> str:
    """Source text of the user's own functions, so that editing one makes a new run."""
    from nucleate.functions import find_function

    names = [name for name in (spec.data.name, spec.model.name) if ":" in name]
    return "\n".join(inspect.getsource(inspect.getmodule(find_function(name)) or find_function(name)) for name in names)
