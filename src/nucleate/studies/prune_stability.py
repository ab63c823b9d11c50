"""Pruning while a network trains: how far accuracy drops at each event, and how the network generalises at the end.

Bartoldson et al. 2020 find that the less stable pruning is, the better the pruned network generalises. Here all arms
end at one density and train on equally long after their last event; they differ in what goes (small, random or large
scores), by which score, in which shape, and over how many events. Two controls disturb the network at the same times
and prune nothing.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from nucleate.data.sources import generator
from nucleate.machine.tuning import Tuning, replay_tuning
from nucleate.models import build
from nucleate.pruning.coverage import coverage
from nucleate.pruning.masks import Masks
from nucleate.pruning.scores import Scores, scores
from nucleate.pruning.select import select
from nucleate.runs import Record, Run, write_run
from nucleate.runs.store import Writer
from nucleate.runs.sweep import Tick
from nucleate.spec import PruneStabilitySpec
from nucleate.studies.disturbances import FACTORS, arms_of, event_epochs
from nucleate.studies.fits import finite
from nucleate.studies.ladder.arms import balanced_batches
from nucleate.studies.ladder.task import Task, right
from nucleate.studies.ladder.verdict import interval
from nucleate.studies.setting import prepare
from nucleate.training import Replica, Stack


def size(spec: PruneStabilitySpec) -> int:
    """Epochs: what the progress bar counts."""
    return spec.train.epochs


def run(
    spec: PruneStabilitySpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Train all arms of all seeds side by side; returns the finished run folder.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used; for a network that cannot be stacked; if all
            networks diverged.
    """
    check(spec)
    setting = prepare(spec, data_root, threads)
    task = Task.of(setting.data, spec.stability.validation, spec.data.seed)
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        _Study(spec, task, setting.data.input_shape, replay_tuning(writer.env["tuning"])).train(writer, tick)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def check(spec: PruneStabilitySpec) -> None:
    """Refuse a spec that makes no study.

    Raises:
        ValueError: with the field, what was given and what it must be.
    """
    own = spec.stability
    if not 0 < own.density < 1:
        raise ValueError(f"stability.density is the kept share at the end, in (0, 1), not {own.density}")
    if not 0 < own.start <= own.end < spec.train.epochs:
        raise ValueError(
            f"stability.start and stability.end must be epochs in order, before the last one ({spec.train.epochs}), "
            f"not {own.start} and {own.end}"
        )
    if not (own.methods and own.targets and own.shapes and own.events):
        raise ValueError("stability.methods, targets, shapes and events must each name at least one")
    if min(own.events) < 1 or max(own.events) > own.end - own.start + 1:
        raise ValueError(f"stability.events must be between 1 and the {own.end - own.start + 1} epochs of pruning")
    if spec.seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {spec.seeds}")


class _Study:
    def __init__(self, spec: PruneStabilitySpec, task: Task, shape: tuple[int, ...], tuning: Tuning) -> None:
        self.spec, self.task = spec, task
        self.seeds = range(spec.seed, spec.seed + spec.seeds)
        self.arms = arms_of(spec.stability)
        self.cells = list(product(self.seeds, self.arms))
        self.batches = balanced_batches(task)
        models = {
            seed: build(spec.model, shape, task.num_classes, generator=torch.Generator().manual_seed(seed))
            for seed in self.seeds
        }
        self.network = copy.deepcopy(models[spec.seed])
        ones = Masks.dense(dict(self.network.named_parameters()))
        replicas = [
            Replica(model=models[seed], labels=task.labels, spec=spec.train, seed=seed, masks=ones)
            for seed, _ in self.cells
        ]
        self.stack = Stack(replicas, task.inputs, task.num_classes, tuning)
        self.masks: list[Masks | None] = [None] * len(self.cells)
        self.drops: list[list[float]] = [[] for _ in self.cells]
        self.times = [event_epochs(spec.stability, arm.events) for arm in self.arms] * len(self.seeds)

    def train(self, writer: Writer, tick: Tick) -> None:
        state = writer.restore()
        if state is not None:
            self.drops = self.stack.load(state)["drops"]
            self.masks = [self._masks_of(cell) for cell in range(len(self.cells))]
            tick(self.stack.epoch)
        for epoch in self.stack:
            due = [cell for cell, times in enumerate(self.times) if epoch.number in times]
            if due:
                writer.append(self._events(due, epoch.number))
                writer.checkpoint(self.stack.state(drops=self.drops))
            tick(1 if epoch.number else 0)
        if all(self._diverged(cell) for cell in range(len(self.cells))):
            raise ValueError(
                f"all {len(self.cells)} networks diverged: lower the learning rate ({self.spec.train.lr:g})"
            )
        writer.append(self._results(writer))

    def _events(self, due: list[int], epoch: int) -> Iterator[Record]:
        """Prune or disturb these cells, and tell what their accuracy lost by it: nan of those that diverged."""
        before = self._accuracies(due)
        for cell in due:
            if not self._diverged(cell):
                self._event(cell, epoch)
        lost = before - self._accuracies(due)
        for cell, drop in zip(due, lost.tolist(), strict=True):
            self.drops[cell].append(drop)
            yield self._row(cell, "drop", self.drops[cell][-1], "validation", epoch, event=len(self.drops[cell]))

    def _event(self, cell: int, epoch: int) -> None:
        seed, arm = self.cells[cell]
        done, spec = self.times[cell].index(epoch) + 1, self.spec.stability
        weights = self.stack.state_dict(cell)
        self.network.load_state_dict(weights)
        draw = generator(seed, f"{arm.name} {done}")
        method = "random" if arm.target == "random" else arm.method
        held = None if arm.noise else self.masks[cell]
        found = scores(
            self.network, method, self.batches, masks=held, seed=int(torch.randint(2**31, (), generator=draw))
        )
        if arm.target == "large":
            negative = {name: -score for name, score in found.items()}
            found = Scores(negative, layout=found.layout, coverage=found.coverage, masks=held, record=found.record)
        share = spec.density ** (1 / arm.events) if arm.noise else spec.density ** (done / arm.events)
        masks = select(found, share, scope="layer", shape=arm.shape)
        if not arm.noise:
            self.masks[cell] = masks
            self.stack.prune(cell, masks)
            return
        for name, mask in masks.items():
            # The coupled biases of units are disturbed with them.
            w = weights[name]
            moved = torch.zeros_like(w)
            if arm.noise == "gauss":
                moved = w + w.std(correction=0) * torch.randn(w.shape, generator=draw)
            weights[name] = torch.where(mask.bool(), w, moved)
        self.stack.put(cell, weights)

    def _masks_of(self, cell: int) -> Masks | None:
        """Masks that a resumed stack holds, of the parameters that have been pruned."""
        _, arm = self.cells[cell]
        if arm.noise or not self.drops[cell]:
            return None
        names = coverage(self.network).layouts
        held = self.stack.masks_of(cell)
        return Masks({name: held[name].to(torch.uint8) for name in names})

    def _diverged(self, cell: int) -> bool:
        return not all(bool(w.isfinite().all()) for w in self.stack.state_dict(cell).values())

    def _accuracies(self, cells: list[int]) -> Tensor:
        logits = self.stack.logits(self.task.validation.inputs, cells)
        hits = (logits.argmax(2) == self.task.validation_labels).double().mean(1)
        return hits.where(logits.isfinite().flatten(1).all(1), torch.nan)

    def _results(self, writer: Writer) -> list[Record]:
        rows: list[Record] = []
        epochs = self.spec.train.epochs
        test, train = self.stack.logits(self.task.test.inputs), self.stack.logits(self.task.inputs)
        correct = {}
        for cell, (seed, arm) in enumerate(self.cells):
            hit = right(test[cell], self.task.test_labels)
            correct[f"{seed}/{arm.name}"] = hit
            known = 1.0 if finite(test[cell]) and finite(train[cell]) else float("nan")
            accuracy = known * float(hit.mean())
            seen = known * float((train[cell].argmax(1) == self.task.labels).double().mean())
            drop = float(np.mean(self.drops[cell])) if self.drops[cell] else 0.0
            for metric, split, value in (
                ("accuracy", "test", accuracy),
                ("accuracy", "train", seen),
                ("gap", "test", seen - accuracy),
                ("instability", "validation", drop),
            ):
                rows.append(self._row(cell, metric, value, split, epochs, instability=drop))
        writer.save_tensors("correct", correct)
        for seed in self.seeds:
            own = [r for r in rows if r["seed"] == seed and (r["metric"], r["split"]) == ("accuracy", "test")]
            for over, value in rank_correlations(own).items():
                base = {"study": self.spec.study, "seed": seed, "step": self.stack.step, "epoch": epochs, "layer": ""}
                rows.append({**base, "split": "test", "metric": "rank_correlation", "value": value, "over": over})
        return rows

    def _row(self, cell: int, metric: str, value: float, split: str, epoch: int, **rest: Any) -> Record:
        seed, arm = self.cells[cell]
        told = {**asdict(arm), "arm": arm.name, "kind": arm.noise or ("pruned" if arm.events else "dense")}
        row = {"study": self.spec.study, "seed": seed, "step": self.stack.step, "epoch": epoch, "layer": ""}
        return {**row, **told, "split": split, "metric": metric, "value": value, **rest}


def rank_correlations(rows: list[Record]) -> dict[str, float]:
    """Spearman's correlation of instability with final accuracy over one seed's arms that prune.

    "all": over all of them; and along each factor: the mean, over the settings of the others, of the correlation
    within such a group. Networks that diverged are left out; nan where nothing varies.

    >>> row = {"kind": "pruned", "method": "snip", "shape": "unit", "events": 1}
    >>> rows = [row | {"target": str(i), "instability": float(i), "value": v} for i, v in enumerate((0.1, 0.3, 0.2))]
    >>> rank_correlations(rows)["all"], rank_correlations(rows)["target"]
    (0.5, 0.5)
    """
    pruned = [row for row in rows if row["kind"] == "pruned" and np.isfinite([row["value"], row["instability"]]).all()]
    found = {"all": _spearman(pruned)}
    for factor in FACTORS:
        groups: dict[tuple[Any, ...], list[Record]] = {}
        for row in pruned:
            groups.setdefault(tuple(row[other] for other in FACTORS if other != factor), []).append(row)
        values = [_spearman(group) for group in groups.values() if len(group) > 1]
        known = [value for value in values if np.isfinite(value)]
        found[factor] = float(np.mean(known)) if known else float("nan")
    return found


def _spearman(rows: list[Record]) -> float:
    drops, accuracies = [r["instability"] for r in rows], [r["value"] for r in rows]
    if len(set(drops)) < 2 or len(set(accuracies)) < 2:
        return float("nan")
    return float(stats.spearmanr(drops, accuracies).statistic)


def table(run: Run) -> str:
    """What the run measured, as text for the terminal: arms from the most to the least stable."""
    by_arm: dict[str, dict[str, list[float]]] = {}
    lost, networks = 0, 0
    for row in run.records:
        if (row["metric"], row["split"]) in (("accuracy", "test"), ("instability", "validation")):
            by_arm.setdefault(row["arm"], {}).setdefault(row["metric"], []).append(float(row["value"]))
        if (row["metric"], row["split"]) == ("accuracy", "test"):
            lost, networks = lost + math.isnan(row["value"]), networks + 1
    lines = [f"{'arm':42s}{'mean drop at an event':>24s}{'test accuracy at the end':>28s}"]
    for name, found in sorted(by_arm.items(), key=lambda item: np.mean(item[1]["instability"])):
        cells = []
        for metric in ("instability", "accuracy"):
            low, mean, high = interval([v for v in found[metric] if math.isfinite(v)] or [math.nan])
            cells.append(f"{100 * mean:.2f}" + (f" +-{50 * (high - low):.2f}" if np.isfinite(low) else "") + " %")
        lines.append(f"{name:42s}{cells[0]:>24s}{cells[1]:>28s}")
    for over in ("all", *FACTORS):
        values = [float(r["value"]) for r in run.select(metric="rank_correlation", over=over)]
        low, mean, high = interval([v for v in values if np.isfinite(v)] or [float("nan")])
        lines.append(
            f"rank correlation over {over if over != 'all' else 'all arms'}: {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        )
    if lost:
        lines.append(f"{lost} of {networks} networks diverged and are left out: lower train.lr")
    return "\n".join(lines)
