"""Two ways to train the jobs of a level: one after another by steps, or all at once as a stack. Both tell the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nucleate.machine.tuning import Tuning
from nucleate.studies.ladder.task import Job, Outcome, Task, right
from nucleate.training import plan
from nucleate.training.rewind import RewindPoint
from nucleate.training.stacked import Replica, Stack
from nucleate.training.steps import StepTraining

Tick = Callable[[int], None]


def stackable(model: nn.Module) -> bool:
    """Whether networks of this kind are trained faster stacked: small multi-layer perceptrons."""
    return plan.stackable(model) and sum(p.numel() for p in model.parameters()) <= plan.LARGEST


def train_by_steps(
    job: Job,
    task: Task,
    tuning: Tuning,
    *,
    every: int,
    tick: Tick,
    resume: tuple[Outcome, RewindPoint] | None = None,
    save: Callable[[Outcome, StepTraining], None] = lambda outcome, training: None,
) -> Outcome:
    """Train one job, evaluating at its start, every so many steps, and at its horizons.

    `save` is called after every evaluation; the outcome so far and the training's snapshot are what a later `resume`
    needs to end in the same bits.
    """
    training = StepTraining(
        job.model, task.inputs, task.labels, task.num_classes, job.spec, tuning, seed=job.seed, masks=job.masks
    )
    if job.start is not None:
        training.rewind(job.start)
    outcome = Outcome()
    if resume is not None:
        outcome, point = resume
        training.rewind(point)
    else:
        _look(outcome, training, task)
    horizons = {epochs * training.per_epoch: epochs for epochs in job.horizons}
    stops = set(range(0, training.horizon, every)) | set(horizons) | ({job.keep} if job.keep is not None else set())
    for stop in sorted(s for s in stops if s >= training.step):
        before, begun = training.step, time.process_time()
        training.run(stop)
        outcome.seconds += time.process_time() - begun
        tick(stop // training.per_epoch - before // training.per_epoch)
        if stop == job.keep:
            outcome.kept = training.snapshot()
        begun = time.process_time()
        if stop > outcome.steps[-1] and (stop % every == 0 or stop in horizons):
            _look(outcome, training, task)
        if stop in horizons:
            now = right(training.logits(task.test), task.test_labels)
            outcome.best = _right_at_best(outcome, training, task)
            outcome.judge(horizons[stop], now)
        outcome.evaluating += time.process_time() - begun
        save(outcome, training)
    outcome.weights = {k: v.detach().cpu().clone() for k, v in job.model.state_dict().items()}
    outcome.end = training.snapshot()
    return outcome


def _look(outcome: Outcome, training: StepTraining, task: Task) -> None:
    logits = training.logits(task.validation)
    if outcome.see(training.step, logits, task.validation_labels):
        outcome.best_weights = {k: v.detach().clone() for k, v in training.model.state_dict().items()}


def _right_at_best(outcome: Outcome, training: StepTraining, task: Task) -> np.ndarray[Any, Any]:
    """Which test points the network of the smallest validation loss classifies right; the training is left as it is."""
    now = {k: v.detach().clone() for k, v in training.model.state_dict().items()}
    training.model.load_state_dict(outcome.best_weights)
    found = right(training.logits(task.test), task.test_labels)
    training.model.load_state_dict(now)
    return found


def train_stacked(jobs: Sequence[Job], task: Task, tuning: Tuning, *, tick: Tick) -> list[Outcome]:
    """Train all jobs at once, evaluating after every epoch.

    Raises:
        ValueError: if one of them starts from the middle of a training.
    """
    if any(job.start is not None or job.keep is not None for job in jobs):
        raise ValueError("a stack starts at step 0")
    replicas = [
        Replica(model=job.model, labels=task.labels, spec=job.spec, seed=job.seed, masks=job.masks) for job in jobs
    ]
    outcomes = [Outcome() for _ in jobs]
    for group in plan.plan_stacks(replicas):
        own, members = [jobs[i] for i in group], [replicas[i] for i in group]
        _train_group(own, members, [outcomes[i] for i in group], task, tuning, tick)
    return outcomes


def _train_group(
    jobs: Sequence[Job],
    replicas: Sequence[Replica],
    outcomes: Sequence[Outcome],
    task: Task,
    tuning: Tuning,
    tick: Tick,
) -> None:
    """Train one stack; test points are asked only when the validation loss is the smallest so far, and at horizons."""
    stack = Stack(replicas, task.inputs, task.num_classes, tuning)
    begun = time.process_time()
    for epoch in stack:
        spent, begun = time.process_time() - begun, time.process_time()
        running = [r for r, job in enumerate(jobs) if epoch.number <= job.spec.epochs]
        seen = stack.logits(task.validation.inputs, running)
        best: set[int] = set()
        for r, logits in zip(running, seen, strict=True):
            outcomes[r].seconds += spent / len(running)
            if outcomes[r].see(epoch.step, logits, task.validation_labels):
                best.add(r)
        asked = [r for r in running if r in best or epoch.number in jobs[r].horizons]
        for r, logits in zip(asked, stack.logits(task.test.inputs, asked) if asked else (), strict=True):
            now = right(logits, task.test_labels)
            if r in best:
                outcomes[r].best = now
            if epoch.number in jobs[r].horizons:
                outcomes[r].judge(epoch.number, now)
        tick(len(running) if epoch.number else 0)
        looked, begun = time.process_time() - begun, time.process_time()
        for r in running:
            outcomes[r].evaluating += looked / len(running)
    for r, outcome in enumerate(outcomes):
        outcome.weights = {k: v.detach().cpu() for k, v in stack.state_dict(r).items()}


def check_finite(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """Refuse a training that diverged.

    Raises:
        ValueError: naming it.
    """
    for job, outcome in zip(jobs, outcomes, strict=True):
        if not all(bool(torch.isfinite(w).all()) for w in outcome.weights.values()):
            raise ValueError(
                f"{job.arm} of level {job.level}, seed {job.seed}, diverged: lower the learning rate ({job.spec.lr:g})"
            )
