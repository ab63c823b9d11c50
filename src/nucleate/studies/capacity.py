"""Few directions of many: train inside affine subspaces of growing dimension (Li et al. 2018)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nucleate.data import Dataset
from nucleate.data.sources import generator
from nucleate.machine.tuning import Tuning, replay_tuning
from nucleate.models import build
from nucleate.runs import Record, Run, write_run
from nucleate.runs.sweep import Tick
from nucleate.spec import CapacitySpec
from nucleate.studies.ladder.task import right
from nucleate.studies.setting import prepare
from nucleate.training.held import HeldOut
from nucleate.training.steps import StepTraining
from nucleate.training.subspace import Subspace

KINDS = ("random", "mask")


def size(spec: CapacitySpec) -> int:
    """Trainings: what the progress bar counts."""
    return 1 + len(KINDS) * len(spec.dimensions)


def run(
    spec: CapacitySpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Train the whole network and every subspace; returns the finished run folder.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used; for batch normalisation, whose statistics would
            move outside the subspace.
    """
    if not spec.dimensions or min(spec.dimensions) < 1 or spec.mixing < 1:
        raise ValueError("dimensions and mixing are at least 1")
    setting = prepare(spec, data_root, threads)
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in setting.model.modules()):
        raise ValueError("running statistics move outside a subspace: take a network without batch normalisation")
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        tuning = replay_tuning(writer.env["tuning"])
        state = writer.restore()
        done = int(state.decode()) if state is not None else 0
        arms = [("dense", 0)] + [(kind, d) for d in spec.dimensions for kind in KINDS]
        tick(done)
        for index, (kind, dimension) in enumerate(arms[done:], start=done):
            writer.append([_trained(spec, setting.data, tuning, kind, dimension)])
            writer.checkpoint(str(index + 1).encode())
            tick(1)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def _trained(spec: CapacitySpec, data: Dataset, tuning: Tuning, kind: str, dimension: int) -> Record:
    draw = torch.Generator().manual_seed(spec.seed)
    model = build(spec.model, data.input_shape, data.num_classes, generator=draw)
    total = sum(p.numel() for p in model.parameters())
    train = spec.train
    if kind == "dense":
        train, dimension = replace(train, lr=spec.dense_lr), total
    elif kind == "mask":
        model = Subspace(model, dimension, kind="mask", generator=generator(spec.seed, f"mask {dimension}"))
        # A coordinate of a mask subspace is a weight, and learns at a weight's rate.
        train = replace(train, lr=spec.dense_lr)
    else:
        drawn = generator(spec.seed, f"subspace {dimension}")
        model = Subspace(model, dimension, kind="random", generator=drawn, mixing=spec.mixing)
    training = StepTraining(
        model, data.train_inputs, data.train_labels, data.num_classes, train, tuning, seed=spec.seed
    )
    training.run(training.horizon)
    correct = right(training.logits(HeldOut(data.test_inputs)), data.test_labels)
    return {
        "study": spec.study,
        "seed": spec.seed,
        "step": training.step,
        "epoch": spec.train.epochs,
        "layer": "",
        "split": "test",
        "metric": "accuracy",
        "value": float(correct.mean()),
        "arm": kind,
        "dimension": dimension,
        "share": dimension / total,
    }


def table(run: Run) -> str:
    """What the run measured, as text for the terminal."""
    lines = (
        f"{r['arm']:8s}{r['dimension']:9,d} directions ({100 * r['share']:6.2f} %)  {100 * r['value']:6.2f} %"
        for r in run.select(metric="accuracy")
    )
    return "\n".join(lines)
