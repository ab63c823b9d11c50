"""What a ladder costs: processor seconds of its steps, of its evaluations, and of everything."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nucleate.runs.store import Writer
from nucleate.studies.ladder.task import Job, Outcome

START = {"all": 0.0, "steps": 0.0, "evaluations": 0.0}


class Costs:
    """Processor seconds in a run's env.json, after every training; a resumed run counts on, less what a kill lost.

    "cpu_seconds": "all", of it "steps" of training and "evaluations" of the validation and test points.
    "cpu_by_training": the steps of each training, by "level/arm/seed".
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._total: dict[str, float] = {**START, **writer.env.get("cpu_seconds", {})}
        self._by_training: dict[str, float] = dict(writer.env.get("cpu_by_training", {}))
        self._since = time.process_time()

    def add(self, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
        """Add trainings, and all that was done since the last ones."""
        now = time.process_time()
        self._total["all"] += now - self._since
        self._since = now
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._total["steps"] += outcome.seconds
            self._total["evaluations"] += outcome.evaluating
            self._by_training[f"{job.level}/{job.arm}/{job.seed}"] = round(outcome.seconds, 3)
        total = {name: round(seconds, 3) for name, seconds in self._total.items()}
        self._writer.update_env(cpu_seconds=total, cpu_by_training=self._by_training)
