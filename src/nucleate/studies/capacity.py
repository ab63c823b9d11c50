"""Why use a large network: tickets of equal size from parents of growing width; and few directions of many weights.

A ticket of n weights cut from a wide parent is compared with the dense network of n weights, trained for equally many
steps, and trained until it has cost as many multiplications as the whole ladder. The other view of a large space of
weights is Li et al. 2018: training inside affine subspaces of growing dimension.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nucleate.data import Dataset
from nucleate.data.sources import generator
from nucleate.machine.tuning import Tuning, replay_tuning
from nucleate.models import build
from nucleate.models.build import check_widths
from nucleate.runs import Record, Run, write_run
from nucleate.runs.sweep import Tick
from nucleate.spec import CapacitySpec, LadderSpec, TicketsSpec
from nucleate.studies import tickets
from nucleate.studies.ladder.masks import prunable, total_count
from nucleate.studies.ladder.task import right
from nucleate.studies.setting import prepare
from nucleate.training.held import HeldOut
from nucleate.training.steps import StepTraining
from nucleate.training.subspace import Subspace

KINDS = ("random", "mask")
KEPT = 0.8
"""Share that a round of a parent's ladder leaves, about."""

UNIT = "training"


def size(spec: CapacitySpec) -> int:
    """Trainings: what the progress bar counts."""
    return len(_arms(spec)) + len(spec.parents)


def run(
    spec: CapacitySpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Train in every subspace, climb every parent's ladder; returns the finished run folder.

    The ladders are runs of the tickets study in the same root.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used; for batch normalisation, whose statistics would
            move outside the subspace.
    """
    if not (spec.dimensions or spec.parents):
        raise ValueError("give dimensions, parents, or both")
    if min((spec.mixing, *spec.dimensions, *spec.parents)) < 1:
        raise ValueError("dimensions, parents and mixing are at least 1")
    check_widths(spec.model.name, spec.parents)
    setting = prepare(spec, data_root, threads)
    ladders = {width: parent_ladder(spec, width, setting.data) for width in spec.parents}
    if spec.dimensions and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in setting.model.modules()):
        raise ValueError("running statistics move outside a subspace: take a network without batch normalisation")
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        tuning = replay_tuning(writer.env["tuning"])
        state = writer.restore()
        done = int(state.decode()) if state is not None else 0
        stages: list[Callable[[], list[Record]]] = [
            partial(_trained, spec, setting.data, tuning, kind, dimension) for kind, dimension in _arms(spec)
        ]
        for width, ladder in ladders.items():
            climb = partial(tickets.run, ladder, root=root, data_root=data_root, threads=threads)
            stages.append(partial(_parent, spec, width, climb))
        tick(done)
        for index, stage in enumerate(stages[done:], start=done):
            writer.append(stage())
            writer.checkpoint(str(index + 1).encode())
            tick(1)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def _arms(spec: CapacitySpec) -> list[tuple[str, int]]:
    """Whole network and subspaces."""
    whole = [("dense", 0)] if spec.dimensions else []
    return whole + [(kind, d) for d in spec.dimensions for kind in KINDS]


def parent_ladder(spec: CapacitySpec, width: int, data: Dataset) -> TicketsSpec:
    """The ladder of a parent of this width, at rates that leave the spec's number of weights at its last level.

    Raises:
        ValueError: if the parent has no more weights than that.
    """
    model = replace(spec.model, width=width)
    parent = build(model, data.input_shape, data.num_classes, generator=torch.Generator())
    total = sum(w.numel() for w in prunable(parent).values())
    if total <= spec.weights:
        raise ValueError(
            f"a parent of width {width} has {total:,} weights, no more than the {spec.weights:,} of its ticket: take "
            "wider parents or fewer weights"
        )
    rounds = max(1, round(math.log(spec.weights / total) / math.log(KEPT)))

    def at(share: float) -> LadderSpec:
        return replace(
            spec.ladder,
            rounds=rounds,
            scope="layer",
            remove_conv=share,
            remove_dense=share,
            remove_output=share / 2,
            controls=("dense-small", "dense-small-longer"),
            control_levels=(rounds,),
            at_init=(),
        )

    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        low, high = (share, high) if total_count(parent, at(share), rounds) > spec.weights else (low, share)
    return TicketsSpec(
        recipe=f"{spec.recipe}-parent-{width}", seed=spec.seed, data=spec.data, model=model, train=spec.train,
        ladder=at(high),
    )  # fmt: skip


def _parent(spec: CapacitySpec, width: int, climb: Callable[[], Run]) -> list[Record]:
    """What the last level of a parent's ladder says."""
    ladder = climb()
    level = max(int(r["level"]) for r in ladder.records)
    rows: list[Record] = []
    for row in ladder.records:
        if (row["metric"], row["level"]) == ("stop_accuracy", level):
            fields = ("study", "seed", "step", "epoch", "layer", "split", "arm", "weights", "level")
            told = {name: row[name] for name in fields} | {"study": spec.study}
            rows.append({**told, "metric": "accuracy", "value": row["value"], "width": width})
    return rows


def _trained(spec: CapacitySpec, data: Dataset, tuning: Tuning, kind: str, dimension: int) -> list[Record]:
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
    return [
        {
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
    ]


def table(run: Run) -> str:
    """What the run measured, as text for the terminal."""
    lines = [
        f"width {r['width']:6,d}  {r['arm']:20s}{r['weights']:9,d} weights  {100 * r['value']:6.2f} %"
        if "width" in r
        else f"{r['arm']:8s}{r['dimension']:9,d} directions ({100 * r['share']:6.2f} %)  {100 * r['value']:6.2f} %"
        for r in run.select(metric="accuracy")
    ]
    return "\n".join(lines)
