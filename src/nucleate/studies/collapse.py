"""Collapse: train past zero error and measure every layer on the way (Papyan, Han, Donoho 2020)."""

from __future__ import annotations

import time
from pathlib import Path

from nucleate.data import Dataset
from nucleate.machine.tuning import tuned
from nucleate.runs import Run, write_run
from nucleate.runs.store import Writer
from nucleate.runs.sweep import Tick
from nucleate.spec import CollapseSpec
from nucleate.studies.setting import Setting, prepare
from nucleate.studies.snapshot import Snapshot
from nucleate.training import Epoch, Training, parallel

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
    setting = prepare(spec, data_root, threads)
    if parallel.rank() > 0:
        return _follow(setting)
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            parallel.told({"path": writer.path, "done": True})
            tick(spec.train.epochs)
            return Run(writer.path)
        training = setting.training(writer)
        begun = time.monotonic()
        _terminal_phase(writer, training, setting.data, spec, tick)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        parallel.told()
        return Run(writer.path)


def _follow(setting: Setting) -> Run:
    """Train beside rank 0, which measures and writes."""
    begun = parallel.told()
    if not begun["done"]:
        training = setting.tuned_training(begun["tuning"])
        if begun["state"] is not None:
            training.load(begun["state"])
        for _ in training:
            pass
        parallel.told()
    return Run(begun["path"])


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
    parallel.told({"path": writer.path, "done": False, "tuning": writer.env["tuning"], "state": state})
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
