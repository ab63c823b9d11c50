"""Runs a descent spec: sizes, samples and noises as cells, then sizes added at the threshold, then what all tell."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from nucleate.machine.tuning import Tuning, as_dict, choose_tuning, replay_tuning, tuned
from nucleate.models import build
from nucleate.models.build import check_widths
from nucleate.runs import Record, Run, write_run
from nucleate.runs.store import Writer
from nucleate.runs.sweep import Tick
from nucleate.spec import DescentSpec
from nucleate.studies.descent.closed import FAMILIES, NONE, Closed
from nucleate.studies.descent.sparse import TICKET, phases
from nucleate.studies.descent.tables import diverged
from nucleate.studies.descent.threshold import between, bracket, by_seed, effective_complexity, mean_errors
from nucleate.studies.descent.trained import EARLY, Cell, Trained, epochs_at, stacks
from nucleate.studies.points import Points, take
from nucleate.studies.progress import Progress
from nucleate.studies.setting import sources
from nucleate.training.loop import check as check_training

SQUARED_FIT = 1e-6
"""Training loss of the closed form that counts as fitting its points."""


def size(spec: DescentSpec) -> int:
    """What the progress bar counts: epochs of all networks, or cells of the closed form. Raises as `check`."""
    check(spec)
    if spec.model.name in FAMILIES:
        return len(spec.widths) * max(1, len(spec.noises)) * max(1, len(spec.samples))
    samples = spec.samples or (spec.data.train_size or 1,)
    networks = sum(len(cells) for cells, _ in _stages(spec, [(w, 1, 0.0) for w in spec.widths]))
    epochs = sum(epochs_at(spec, n, max(samples)) for n in samples) * max(1, len(spec.noises))
    return epochs * networks * len(spec.seeds)


def check(spec: DescentSpec) -> None:
    """Refuse a spec that makes no study.

    Raises:
        ValueError: with the field, what was given and what it must be.
    """
    if not spec.widths or min(spec.widths) < 1 or (spec.model.name == "tree" and min(spec.widths) < 2):
        least = 2 if spec.model.name == "tree" else 1
        raise ValueError(f"widths must be whole numbers from {least} on, not {list(spec.widths)}")
    if spec.model.name not in FAMILIES:
        check_training(spec.train)
        check_widths(spec.model.name, spec.widths)
    if spec.samples and min(spec.samples) < 1:
        raise ValueError(f"samples must be at least 1, not {list(spec.samples)}")
    for noise in (*spec.noises, spec.data.label_noise):
        if not 0 <= noise <= 1:
            raise ValueError(f"label noise is a share in [0, 1], not {noise}")
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds) or min(spec.seeds) < 0:
        raise ValueError(f"seeds must be different whole numbers from 0 on, not {list(spec.seeds)}")
    if spec.ridges and (min(spec.ridges) <= 0 or spec.model.name not in FAMILIES[:2]):
        raise ValueError("ridges are penalties above 0 on random features; networks take decays")
    if spec.decays and (min(spec.decays) < 0 or spec.model.name in FAMILIES):
        raise ValueError("decays are weight decays of networks, at least 0; random features take ridges")
    if spec.distil and (spec.distil < 0 or spec.refine or spec.model.name in FAMILIES):
        raise ValueError("distil is a temperature above 0, for networks, without refine: the widest one teaches")
    if spec.densities and (spec.model.name in FAMILIES or len(set(spec.densities)) < len(spec.densities)):
        raise ValueError(f"densities are different kept shares of a network's weights, not {list(spec.densities)}")
    for density in spec.densities:
        if not 0 < density < 1:
            raise ValueError(f"a density is the kept share of the weights, above 0 and below 1, not {density}")
    if not 0 <= spec.epsilon <= 1 or (spec.epsilon and spec.model.name in FAMILIES):
        raise ValueError(f"epsilon is a share of the inputs' range in [0, 1], for networks, not {spec.epsilon}")
    if spec.replace_one and (spec.validation < 1 or spec.model.name not in FAMILIES[:2]):
        raise ValueError("replace_one takes a validation point and random features: give validation points")
    if not 0 <= spec.fit_error < 1 or spec.refine < 0 or spec.points < 2:
        raise ValueError("fit_error must be in [0, 1), refine at least 0 and points at least 2")


def run(
    spec: DescentSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Fit every model of a spec; returns its finished run folder.

    Records carry width, parameters, samples, noise and antidote beside the usual fields; those of several seeds
    together (churn, variance, bias) have no seed. Networks that diverged have measures of nan. A run that was stopped
    goes on, a finished one is returned as it is.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used; if all networks diverged.
    """
    check(spec)
    samples = spec.samples or ((spec.data.train_size,) if spec.data.train_size else ())
    points = take(spec.data, data_root, size=max(samples, default=None), validation=spec.validation)
    samples = samples or (len(points.clean),)
    fresh = choose_tuning(
        precision=spec.train.precision,
        threads=spec.train.threads or threads,
        convolutional=spec.model.name not in (*FAMILIES, "mlp"),
        device=spec.train.device,
    )
    env = {
        "tuning": as_dict(fresh),
        "data": {"name": points.data.name, "digest": points.data.digest, "train": len(points.clean)},
        "class_names": list(points.data.class_names),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    with write_run(
        root, spec, env=env, data=points.data.digest, source=sources(spec.data.name, spec.model.name)
    ) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        tuning = replay_tuning(writer.env["tuning"])
        grid = list(
            itertools.product(sorted(set(spec.widths)), sorted(samples), spec.noises or (spec.data.label_noise,))
        )
        progress = Progress(writer)
        writer.save_tensors("test", {"labels": points.data.test_labels.numpy()})
        _fit(spec, points, grid, tuning, progress, tick)
        lost, networks = diverged(writer.records)
        if lost == networks:
            raise ValueError(f"all {networks} networks diverged: lower the learning rate ({spec.train.lr:g})")
        added = _refined(spec, writer, grid)
        _fit(spec, points, added, tuning, progress, tick)
        writer.append(_conclusions(spec, writer, [*grid, *added]))
        writer.update_env(seconds=round(progress.seconds, 2))
        writer.finish()
        return Run(writer.path)


Grid = Sequence[tuple[int, int, float]]


def _fit(spec: DescentSpec, points: Points, grid: Grid, tuning: Tuning, progress: Progress, tick: Tick) -> None:
    if spec.model.name in FAMILIES:
        closed = Closed(spec, points, max((w for w, _, _ in grid), default=1))
        for width, samples, noise in grid:
            if not progress.skip():
                with tuned(tuning):
                    progress.writer.append(list(closed.cell(width, samples, noise)))
                progress.writer.save_tensors(f"predicted-{progress.part:04d}", closed.predicted)
                progress.finished()
            tick(1)
        return
    largest, parameters = len(points.clean), _parameters(spec, points, [w for w, _, _ in grid])
    before: dict[str, Any] = {}
    for cells, told in _stages(spec, grid):
        found: dict[str, Any] = {}
        for members in stacks(spec, cells, parameters):
            whole = epochs_at(spec, members[0].samples, largest) * len(members) * len(spec.seeds)
            if progress.skip():
                tick(whole)
            else:
                trained = Trained(spec, points, members, tuning, before, largest=largest)
                _train(trained, progress, tick)
                if told:
                    progress.writer.save_tensors(f"weights-{progress.part:04d}", trained.weights())
                progress.finished()
            if told:
                found |= progress.writer.tensors(f"weights-{progress.part:04d}")
        before = found or before


def _stages(spec: DescentSpec, grid: Grid) -> Iterator[tuple[list[Cell], bool]]:
    """Networks that can be trained at once, and whether later ones are pruned from them or taught by them."""
    decays = (spec.train.weight_decay, *(d for d in spec.decays if d != spec.train.weight_decay))
    dense = [Cell(w, n, q, decay) for w, n, q in grid for decay in decays]
    yield dense, bool(spec.densities or spec.distil)
    if spec.distil:
        yield [replace(cell, distilled=True) for cell in dense if cell.decay == spec.train.weight_decay], False
    for density in sorted(spec.densities, reverse=True):
        arms = (TICKET, *spec.controls)
        yield (
            [replace(cell, density=density, arm=arm) for cell in dense for arm in arms],
            density > min(spec.densities),
        )


def _train(trained: Trained, progress: Progress, tick: Tick) -> None:
    if progress.inside:
        trained.load(progress.inside)
        tick(trained.stack.epoch * trained.replicas)
    done = trained.stack.epoch
    for epoch, rows in trained:
        progress.writer.append(rows)
        tick(trained.replicas * (epoch - done))
        done = epoch
        if epoch < trained.epochs:
            progress.pause(trained.state)
    progress.writer.save_tensors(f"predicted-{progress.part:04d}", trained.predictions())


def _parameters(spec: DescentSpec, points: Points, widths: Sequence[int]) -> dict[int, int]:
    found = {}
    for width in set(widths):
        model = build(
            replace(spec.model, width=width), points.data.input_shape, points.data.num_classes, generator=Generator()
        )
        found[width] = sum(p.numel() for p in model.parameters())
    return found


def _metric(spec: DescentSpec) -> tuple[str, float]:
    return ("loss", SQUARED_FIT) if spec.model.name in FAMILIES[:2] else ("error", spec.fit_error)


def _whole(spec: DescentSpec) -> dict[str, Any]:
    """Fields that tell a whole network's records from those of pruned ones."""
    return {"density": 1.0} if spec.densities else {}


def _refined(spec: DescentSpec, writer: Writer, grid: Grid) -> list[tuple[int, int, float]]:
    """New sizes next to the threshold of each sample and noise, as the records so far tell it."""
    if not spec.refine:
        return []
    metric, bound = _metric(spec)
    first = {w for w, _, _ in grid}
    added = []
    for n, q in dict.fromkeys((n, q) for _, n, q in grid):
        errors = mean_errors(writer.records, metric, "width", samples=n, noise=q, antidote=NONE, **_whole(spec))
        # Sizes that an earlier, stopped run had already added do not move the bracket.
        found = bracket({w: e for w, e in errors.items() if w in first}, bound)
        added += [(w, n, q) for w in between(found, spec.refine)]
    return added


def _conclusions(spec: DescentSpec, writer: Writer, grid: Grid) -> Iterator[dict[str, Any]]:
    """Interpolation threshold by width, for each sample and noise; effective complexity of each width."""
    metric, bound = _metric(spec)
    rows = writer.records
    base = {"study": spec.study, "seed": None, "step": 0, "epoch": 0, "layer": "", "split": "train", "antidote": NONE}
    for n, q in dict.fromkeys((n, q) for _, n, q in grid):
        found = bracket(mean_errors(rows, metric, "width", samples=n, noise=q, antidote=NONE, **_whole(spec)), bound)
        for name, width in (("threshold_below", found.below), ("threshold", found.above)):
            if width is not None:
                yield base | {"metric": name, "value": float(width), "samples": n, "noise": q}
    if spec.model.name not in FAMILIES:
        yield from _fit_epochs(spec, rows)
    if len({n for _, n, _ in grid}) > 1:
        for w, q in dict.fromkeys((w, q) for w, _, q in grid):
            errors = mean_errors(rows, "error", "samples", width=w, noise=q, antidote=NONE, **_whole(spec))
            value = effective_complexity(errors)
            yield base | {"metric": "effective_complexity", "value": value, "width": w, "noise": q}
    for w, n, q in dict.fromkeys(grid) if spec.densities else ():
        where = {"width": w, "samples": n, "noise": q, "antidote": NONE}
        curve = by_seed(rows, "error", "density", split="test", arm=TICKET, **where)
        seeds = [s for s in spec.seeds if all(s in errors for errors in curve.values())]
        if not curve or not seeds:
            continue
        for phase, value in asdict(phases({d: [e[s] for s in seeds] for d, e in curve.items()})).items():
            yield base | where | {"metric": "phase_end", "value": value, "split": "test", "arm": TICKET, "phase": phase}


def _fit_epochs(spec: DescentSpec, rows: Sequence[Record]) -> Iterator[Record]:
    """First measured epoch at which each network fits its labels; nan where it never does."""
    found: dict[tuple[Any, ...], Record] = {}
    for row in rows:
        if (row["split"], row["metric"]) == ("train", "error") and row["antidote"] != EARLY:
            key = tuple(row.get(k) for k in ("seed", "width", "samples", "noise", "antidote", "density", "arm"))
            fits = row["value"] <= spec.fit_error
            if key not in found or (fits and math.isnan(found[key]["value"])):
                value = float(row["epoch"]) if fits else math.nan
                found[key] = {**row, "epoch": 0, "step": 0, "metric": "fit_epoch", "value": value}
    yield from found.values()
