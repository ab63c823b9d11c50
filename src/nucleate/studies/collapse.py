"""Collapse: train past zero error and measure every layer on the way (Papyan, Han, Donoho 2020)."""

from __future__ import annotations

import time
from pathlib import Path

from nucleate.machine.tuning import tuned
from nucleate.runs import Record, Run, write_run
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
    The network is measured at the start, at log-spaced epochs, at that epoch and at the end: in full at the start, at
    that epoch, at the end and, if asked, at every `measure.full_every`-th of the others. A run that was stopped goes
    on from its last checkpoint, with the tuning it was begun with; a finished one is returned as it is.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    setting = prepare(spec, data_root, threads)
    check(spec, setting.data)
    snapshot = Snapshot(setting.model.to(spec.train.device), setting.data, spec)
    grid = measured_epochs(spec.train.epochs, spec.measure.points)
    full = full_epochs(grid, spec.measure.full_every)
    if parallel.rank() > 0:
        return _follow(setting)
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            parallel.told({"path": writer.path, "done": True})
            tick(spec.train.epochs)
            return Run(writer.path)
        training = setting.training(writer)
        begun = time.monotonic()
        _terminal_phase(writer, training, snapshot, grid, full, spec, tick)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        parallel.told()
        return Run(writer.path)


def check(spec: CollapseSpec, data: Dataset) -> None:
    """Refuse what would be found out only at a measure.

    Raises:
        ValueError: with the field or the class, what was given and what it must be.
    """
    measure = spec.measure
    for name, low in {"subsample": 2 * data.num_classes, "picture": 1, "robustness": 0, "epsilon": 0}.items():
        if getattr(measure, name) < low:
            of = f", two for each of the {data.num_classes} classes" if name == "subsample" else ""
            raise ValueError(f"measure.{name} must be at least {low}{of}, not {getattr(measure, name):g}")
    held_out = min(measure.subsample, len(data.test_labels))
    if not 1 <= measure.k < held_out:
        raise ValueError(
            f"measure.k must lie in 1..{held_out - 1}, neighbours among {held_out} held-out points, not {measure.k}"
        )
    unseen = sorted(set(data.test_labels.tolist()) - set(data.train_labels.tolist()))
    if unseen:
        raise ValueError(
            f"classes {unseen} have held-out points but no training point, so no mean that could judge them: leave "
            "these points out, or give training points"
        )


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


def full_epochs(grid: set[int], every: int) -> set[int]:
    """The start, the end, and every so many of the measured epochs between them, or none of these if 0.

    >>> sorted(full_epochs({0, 1, 3, 10, 32, 100}, 3))
    [0, 10, 100]

    Raises:
        ValueError: if `every` is negative.
    """
    if every < 0:
        raise ValueError(f"measure.full_every must be at least 0, not {every}")
    return {min(grid), max(grid)} | (set(sorted(grid)[::every]) if every else set())


def _terminal_phase(
    writer: Writer,
    training: Training,
    snapshot: Snapshot,
    grid: set[int],
    full: set[int],
    spec: CollapseSpec,
    tick: Tick,
) -> None:
    zero, kept, asked = -1, 0, 0
    state = writer.restore()
    parallel.told({"path": writer.path, "done": False, "tuning": writer.env["tuning"], "state": state})
    if state is not None:
        notes = training.load(state)
        zero, kept, asked = notes["zero"], notes["kept"], notes["asked"]
        tick(training.epoch)
    last_checkpoint = time.monotonic()
    for epoch in training:
        # As long as it does not fit, one batch mostly says so. When it has once fitted, all points would have to be
        # asked in every epoch, so from then on the measures count.
        first_zero = zero < 0 and training.fits()
        if first_zero:
            zero = epoch.number
        writer.append([_row(spec, epoch, "epoch_loss", epoch.loss)])
        due = epoch.number in grid or first_zero
        if due:
            with tuned(training.tuning):
                records, tensors = snapshot.measure(epoch, full=epoch.number in full or first_zero)
            if zero >= 0:
                kept, asked = kept + (_error(records) <= spec.train.error_floor), asked + 1
            writer.save_tensors(f"epoch-{epoch.number:06d}", tensors)
            writer.append(records)
            writer.update_env(layers=snapshot.layers, zero_error_epoch=zero)
        if epoch.number == spec.train.epochs:
            writer.append([_row(spec, epoch, "zero_error_kept", kept / asked if asked else 0.0)])
        if due or time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS:
            writer.checkpoint(training.state(zero=zero, kept=kept, asked=asked))
            last_checkpoint = time.monotonic()
        tick(1 if epoch.number else 0)


def _error(records: list[Record]) -> float:
    return next(float(r["value"]) for r in records if (r["metric"], r["split"]) == ("error", "train"))


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
