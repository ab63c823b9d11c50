"""Runs a bias spec: one part for each seed (of the edge: for each rate)."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from nucleate.machine.tuning import as_dict, choose_tuning, replay_tuning, tuned
from nucleate.runs import Record, Run, write_run
from nucleate.runs.sweep import Tick
from nucleate.spec import BiasSpec
from nucleate.studies.bias.edge import edge
from nucleate.studies.bias.problems import depth, max_margin, min_norm
from nucleate.studies.points import take
from nucleate.studies.progress import Progress

PROBLEMS = {"min-norm": min_norm, "max-margin": max_margin, "depth": depth}


def check(spec: BiasSpec) -> None:
    """Refuse a spec that makes no study.

    Raises:
        ValueError: with the field, what was given and what it must be.
    """
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds) or min(spec.seeds) < 0:
        raise ValueError(f"seeds must be different whole numbers from 0 on, not {list(spec.seeds)}")
    if not 0 <= spec.data.label_noise <= 1:
        raise ValueError(f"label noise is a share in [0, 1], not {spec.data.label_noise}")
    if spec.steps < 1 or spec.points < 2 or spec.width < 1:
        raise ValueError("steps and width must be at least 1, points at least 2")
    if not spec.rates or min(spec.rates) <= 0:
        raise ValueError(f"rates must be above 0, not {list(spec.rates)}")
    if not spec.depths or min(spec.depths) < 1:
        raise ValueError(f"depths must be at least 1, not {list(spec.depths)}")


def size(spec: BiasSpec) -> int:
    """What the progress bar counts: seeds, or rates of the edge. Raises as `check`."""
    check(spec)
    return len(spec.rates) if spec.problem == "edge" else len(spec.seeds)


def run(
    spec: BiasSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Solve one of the problems for every seed; returns the finished run folder. Resumes after the last part.

    Records have an `arm` (how the descent was started or stepped) and a `step`.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    check(spec)
    content = {}
    if spec.problem == "edge":
        content["data"] = take(spec.data, data_root, size=spec.data.train_size, validation=0).data.digest
    fresh = choose_tuning(precision="auto", threads=spec.threads or threads, convolutional=False, device="cpu")
    env = {
        "tuning": as_dict(fresh),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    with write_run(root, spec, env=env, **content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        progress = Progress(writer)
        with tuned(replay_tuning(writer.env["tuning"])):
            for part in spec.rates if spec.problem == "edge" else spec.seeds:
                if not progress.skip():
                    writer.append(_rows(spec, part, data_root))
                    progress.finished()
                tick(1)
        writer.update_env(seconds=round(progress.seconds, 2))
        writer.finish()
        return Run(writer.path)


def _rows(spec: BiasSpec, part: float, data_root: Path | None) -> Iterator[Record]:
    if spec.problem == "edge":
        found = edge(spec, part, data_root)
    else:
        found = ((int(part), *measured) for measured in PROBLEMS[spec.problem](spec, int(part)))
    for seed, arm, step, metric, value in found:
        row = {"study": spec.study, "seed": seed, "step": step, "epoch": 0, "layer": "", "split": "train"}
        yield row | {"metric": metric, "value": value, "arm": arm, "problem": spec.problem}
