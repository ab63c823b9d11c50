"""Lottery tickets: train, prune, rewind, train again, level after level, beside controls (Frankle, Carbin 2019)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nucleate.machine.tuning import Tuning, replay_tuning
from nucleate.models import build
from nucleate.pruning.masks import Masks
from nucleate.pruning.scores import find_score
from nucleate.runs import Record, Run, write_run
from nucleate.runs.store import Writer, write_atomic
from nucleate.runs.sweep import Tick
from nucleate.spec import LadderSpec, TicketsSpec
from nucleate.studies.ladder import portrait
from nucleate.studies.ladder.arms import TICKET, Arms, controls_at
from nucleate.studies.ladder.costs import Costs
from nucleate.studies.ladder.critical import critical_density
from nucleate.studies.ladder.masks import check_levels, next_masks, prunable, total_count
from nucleate.studies.ladder.progress import Progress, pack_progress, unpack_progress
from nucleate.studies.ladder.task import Job, Outcome, Task
from nucleate.studies.ladder.trainers import check_finite, stackable, train_by_steps, train_stacked
from nucleate.studies.setting import prepare
from nucleate.training.loop import batches
from nucleate.training.loop import check as check_training
from nucleate.training.rewind import RewindPoint

CHECKPOINT_SECONDS = 20.0
"""A kill loses at most about this much of a training that runs on its own."""

NC_POINTS = 2000
"""Training points on which collapse is measured."""


def size(spec: TicketsSpec) -> int:
    """Epochs of all trainings: what the progress bar counts."""
    ladder, epochs = spec.ladder, spec.train.epochs
    levels = [n for n in range(1, ladder.rounds + 1) if not ladder.control_levels or n in ladder.control_levels]
    at_init = len(ladder.at_init) * (3 if ladder.ablations else 1)
    total = 1 + ladder.rounds + len(levels) * at_init
    for level in range(1, ladder.rounds + 1):
        for name in controls_at(ladder, level):
            total += {"dense-longer": 0, "one-shot-longer": level}.get(name, 1)
    total += max(levels, default=0) + 1 if "dense-longer" in ladder.controls else 0
    return spec.seeds * epochs * total


def run(
    spec: TicketsSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Climb one ladder (of several seeds, where they are stacked); returns its finished run folder.

    Every level is a stage: its trainings, then masks and weights as tensors, then a checkpoint. A run that was killed
    goes on from there, inside a long training from its last evaluation, and ends in the same bits.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    check(spec.ladder)
    setting = prepare(spec, data_root, threads)
    task = Task.of(setting.data, spec.ladder.validation, spec.data.seed)
    check_training(spec.train)
    check_levels(setting.model, spec.ladder)
    end = spec.train.epochs * len(batches(len(task.labels), spec.train.batch_size, seed=0, epoch=0))
    if 0 < end <= spec.ladder.rewind_step:
        raise ValueError(f"ladder.rewind_step {spec.ladder.rewind_step} is not before the training's end at step {end}")
    from_start = spec.ladder.rewind_step == 0 and spec.ladder.after != "fine-tune"
    stacked = stackable(setting.model) and from_start and spec.train.device == "cpu"
    if spec.seeds > 1 and not stacked:
        raise ValueError(
            f"recipe {spec.recipe} cannot stack its {spec.seeds} seeds: only small multi-layer perceptrons that are "
            "reset to their initialisation are; give one seed a run, as in --seeds 1"
        )
    counts = {"prunable": sum(w.numel() for w in prunable(setting.model).values()), "stacked": stacked}
    with write_run(root, spec, env={**setting.env, **counts}, **setting.content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        tuning = replay_tuning(writer.env["tuning"])
        begun = time.monotonic()
        ladder = _Ladder(spec, task, setting.data.input_shape, writer, tuning, tick, stacked=stacked)
        ladder.climb()
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def check(ladder: LadderSpec) -> None:
    """Refuse a ladder that cannot be climbed.

    Raises:
        ValueError: with the field, what was given and what it must be.
    """
    if ladder.rounds < 0 or ladder.every < 1 or ladder.rewind_step < 0:
        raise ValueError("ladder.rounds and ladder.rewind_step must be at least 0, ladder.every at least 1")
    for name in ("remove_conv", "remove_dense", "remove_output"):
        if not 0 <= getattr(ladder, name) < 1:
            raise ValueError(f"ladder.{name} is the share a round removes, in [0, 1), not {getattr(ladder, name)}")
    for name in ("control_levels", "one_shot_levels"):
        outside = [n for n in getattr(ladder, name) if not 1 <= n <= ladder.rounds]
        if outside:
            raise ValueError(f"ladder.{name} must be between 1 and the {ladder.rounds} rounds, not {outside[0]}")
    if ladder.rewind_step and ladder.after != "reset":
        raise ValueError("ladder.rewind_step goes with ladder.after reset")
    for name in (ladder.method, *ladder.at_init):
        find_score(name)


class _Ladder:
    """One run's ladder: all its seeds, level after level."""

    def __init__(
        self,
        spec: TicketsSpec,
        task: Task,
        shape: tuple[int, ...],
        writer: Writer,
        tuning: Tuning,
        tick: Tick,
        *,
        stacked: bool,
    ) -> None:
        self.spec, self.task, self.shape = spec, task, shape
        self.writer, self.tuning, self.tick, self.stacked = writer, tuning, tick, stacked
        self.seeds = range(spec.seed, spec.seed + spec.seeds)
        self.arms = {seed: Arms(spec, task, shape, seed) for seed in self.seeds}
        self.costs = Costs(writer)
        self.points = writer.path / "checkpoints"

    def climb(self) -> None:
        state = self.writer.restore()
        progress = unpack_progress(state) if state is not None else Progress()
        self.tick(progress.epochs)
        for level in range(progress.level, self.spec.ladder.rounds + 1):
            jobs = self._jobs(level)
            stages = [jobs] if self.stacked else [[job] for job in jobs]
            for index in range(progress.stage if level == progress.level else 0, len(stages)):
                here = Progress(level=level, stage=index, epochs=progress.epochs)
                inside = (progress.outcome, progress.point) if (level, index) == progress.at else (None, None)
                outcomes = self._train(stages[index], here, inside)
                check_finite(stages[index], outcomes)
                for job, outcome in zip(stages[index], outcomes, strict=True):
                    self._tell(job, outcome)
                self._store(stages[index], outcomes)
                progress.epochs += sum(job.spec.epochs for job in stages[index])
                later = (level, index + 1) if index + 1 < len(stages) else (level + 1, 0)
                self.writer.checkpoint(pack_progress(Progress(level=later[0], stage=later[1], epochs=progress.epochs)))
                self.costs.add(stages[index], outcomes)

    def _jobs(self, level: int) -> list[Job]:
        jobs: list[Job] = []
        for seed, arms in self.arms.items():
            masks, before, trained = self._masks(level, seed)
            point = self._point("rewind" if self.spec.ladder.after == "reset" else "end")
            jobs.append(arms.ticket(level, masks, before, point))
            jobs += arms.controls(level, masks, trained, point) if level else arms.longer()
        return jobs

    def _masks(self, level: int, seed: int) -> tuple[Masks, dict[str, Tensor], dict[str, Tensor]]:
        """The level's masks, the trained weights of the level before, and the dense network's."""
        arms = self.arms[seed]
        if level == 0:
            return Masks.dense(prunable(arms.dense)), arms.initial, arms.initial
        masks, before = read_ticket(self.writer, level - 1, seed)
        trained = read_ticket(self.writer, 0, seed)[1]
        model = build(self.spec.model, self.shape, self.task.num_classes, generator=torch.Generator())
        model.load_state_dict(before)
        ladder = self.spec.ladder
        return next_masks(model, ladder, level, masks, arms.batches, seed, arms.initial), before, trained

    def _train(
        self, jobs: list[Job], here: Progress, inside: tuple[Outcome | None, RewindPoint | None]
    ) -> list[Outcome]:
        if self.stacked:
            return train_stacked(jobs, self.task, self.tuning, tick=self.tick)
        last = time.monotonic()

        def save(outcome: Outcome, training: Any) -> None:
            nonlocal last
            if time.monotonic() - last > CHECKPOINT_SECONDS:
                content = pack_progress(replace(here, outcome=outcome, point=training.snapshot()))
                self.writer.checkpoint(content)
                last = time.monotonic()

        outcome, point = inside
        resume = (outcome, point) if outcome is not None and point is not None else None
        every = self.spec.ladder.every
        return [train_by_steps(jobs[0], self.task, self.tuning, every=every, tick=self.tick, resume=resume, save=save)]

    def _point(self, kind: str) -> RewindPoint | None:
        path = self.points / kind
        return RewindPoint(path.read_bytes()) if path.exists() else None

    def _tell(self, job: Job, outcome: Outcome) -> None:
        """Append the records of one training."""
        rows: list[Record] = []
        for horizon, judged in sorted(outcome.judged.items()):
            level = job.level if not job.told else horizon // self.spec.train.epochs - 1
            density = self._density(level, job)
            base = {
                "study": self.spec.study,
                "seed": job.seed,
                "level": level,
                "arm": job.arm,
                "density": density,
                "weights": job.masks.kept,
                "epoch": horizon,
                "layer": "",
            }
            shared = {"step": judged.step, "censored": judged.censored}
            for metric, split, value in (
                ("stop_step", "validation", float(judged.stop)),
                ("stop_loss", "validation", judged.loss),
                ("stop_accuracy", "test", float(judged.correct.mean())),
                ("stop_error", "test", 1 - float(judged.correct.mean())),
                ("end_accuracy", "test", float(judged.correct_end.mean())),
            ):
                rows.append({**base, **shared, "split": split, "metric": metric, "value": value})
            if job.arm.endswith("-init"):
                emptied = float(len(job.masks.emptied))
                rows.append({**base, "step": 0, "split": "", "metric": "emptied", "value": emptied})
        if not job.told:
            for step, loss, accuracy in zip(outcome.steps, outcome.losses, outcome.accuracies, strict=True):
                for metric, value in (("loss", loss), ("accuracy", accuracy)):
                    rows.append({**base, "step": step, "split": "validation", "metric": metric, "value": value})
        if job.arm == TICKET:
            rows += [{**base, "step": outcome.steps[-1], **row} for row in self._portrait(job, outcome)]
            if not job.level and self.spec.ladder.critical:
                for method in self.spec.ladder.at_init:
                    value = critical_density(self.arms[job.seed], method)
                    found = {"arm": f"{method}-init", "split": "", "metric": "critical_density", "value": value}
                    rows.append({**base, "step": 0, **found})
        self.writer.append(rows)

    def _density(self, level: int, job: Job) -> float:
        """Kept share of the parent's weights at a level, that of the ticket beside which a control stands."""
        if job.arm == TICKET or (level == job.level and not job.arm.startswith("dense-small")):
            return job.masks.density
        return total_count(self.arms[job.seed].dense, self.spec.ladder, level) / int(self.writer.env["prunable"])

    def _portrait(self, job: Job, outcome: Outcome) -> Iterable[Record]:
        job.model.load_state_dict(outcome.weights)
        arms = self.arms[job.seed]
        values = portrait.portrait(job.masks, arms.initial, outcome.weights, job.model)
        values.append(("overlap_chance", "", "", portrait.chance_overlap(job.masks)))
        inputs, labels = self.task.inputs[:NC_POINTS], self.task.labels[:NC_POINTS]
        values += portrait.collapse_values(job.model, inputs, labels, self.task.num_classes)
        for metric, layer, split, value in values:
            # Measures of single layers are charted side by side: the layer is what tells their curves apart.
            where = {"layer": layer} if split else {"part": layer or "all"}
            yield {"metric": metric, "split": split, "value": value, **where}
        for moment, position, value in portrait.weight_histograms(job.masks, arms.initial, outcome.weights):
            yield {"metric": "histogram", "split": "", "value": value, "part": moment, "position": position}
        inputs_kept = portrait.input_counts(job.masks, self.shape) if job.level == self.spec.ladder.rounds else None
        for row, counts in enumerate(inputs_kept.flip(0).tolist() if inputs_kept is not None else []):
            for column, count in enumerate(counts):
                yield {"metric": "input_weights", "split": "", "value": float(count), "row": row, "column": column}

    def _store(self, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
        """Write the stage's tensors, and, once all seeds are there, what compares them."""
        files: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for job, outcome in zip(jobs, outcomes, strict=True):
            for horizon, judged in outcome.judged.items():
                level = job.level if not job.told else horizon // self.spec.train.epochs - 1
                arrays = files.setdefault(file_name(level, job.arm), {})
                arrays[f"{job.seed}/correct"] = judged.correct
                arrays[f"{job.seed}/correct_end"] = judged.correct_end
            if job.arm == TICKET:
                arrays |= {f"{job.seed}/mask/{name}": mask.cpu().numpy() for name, mask in job.masks.items()}
                arrays |= {f"{job.seed}/weights/{name}": value.numpy() for name, value in outcome.weights.items()}
            if outcome.kept is not None:
                self.points.mkdir(exist_ok=True)
                write_atomic(self.points / "rewind", outcome.kept.content)
            if job.arm == TICKET and self.spec.ladder.after == "fine-tune" and outcome.end is not None:
                self.points.mkdir(exist_ok=True)
                write_atomic(self.points / "end", outcome.end.content)
        for name, arrays in files.items():
            self.writer.save_tensors(name, arrays)
        tickets = [job for job in jobs if job.arm == TICKET]
        if len(tickets) > 1:
            shared = portrait.overlaps([job.masks for job in tickets])
            self.writer.append(
                {
                    "study": self.spec.study,
                    "seed": job.seed,
                    "level": job.level,
                    "arm": TICKET,
                    "density": job.masks.density,
                    "weights": job.masks.kept,
                    "epoch": job.spec.epochs,
                    "layer": "",
                    "split": "",
                    "metric": "overlap",
                    "value": value,
                }
                for job, value in zip(tickets, shared, strict=True)
            )


def file_name(level: int, arm: str) -> str:
    """Name of the tensors of a level's arm.

    >>> file_name(3, "ticket")
    'level-03-ticket'
    """
    return f"level-{level:02d}-{arm}"


def read_ticket(run: Run, level: int, seed: int) -> tuple[Masks, dict[str, Tensor]]:
    """Masks and trained weights of a level's ticket."""
    arrays = run.tensors(file_name(level, TICKET))
    found: dict[str, dict[str, Tensor]] = {"mask": {}, "weights": {}}
    for key, value in arrays.items():
        own, _, rest = key.partition("/")
        kind, _, name = rest.partition("/")
        if own == str(seed) and kind in found:
            found[kind][name] = torch.from_numpy(np.array(value))
    return Masks(found["mask"]), found["weights"]
