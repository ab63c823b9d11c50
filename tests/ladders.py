"""Small ladders of tickets on the digits, and all that one leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nucleate.data import load
from nucleate.runs import Run
from nucleate.spec import DataSpec, LadderSpec, ModelSpec, TicketsSpec, TrainSpec
from nucleate.studies import tickets
from nucleate.studies.ladder.arms import Arms
from nucleate.studies.ladder.task import Task

CONTROLS = (
    "reinit",
    "random",
    "layer-shuffle",
    "global-shuffle",
    "inverted",
    "one-shot",
    "one-shot-longer",
    "dense-longer",
    "dense-small",
)


def small(**fields: Any) -> TicketsSpec:
    ladder = fields.pop("ladder", {})
    return TicketsSpec(
        **{
            "recipe": "small",
            "seed": 100,
            "data": DataSpec(name="digits", train_size=200, test_size=60),
            "model": ModelSpec(name="lenet", width=12, init="glorot"),
            "train": TrainSpec(
                optimizer="adam", lr=5e-3, weight_decay=1e-3, epochs=2, batch_size=40, schedule="constant", threads=1,
                precision="fp32",
            ),
            **fields,
        },
        ladder=LadderSpec(**{"rounds": 2, "validation": 40, "every": 3, **ladder}),
    )  # fmt: skip


def climb(spec: TicketsSpec, root: Path, tick: Callable[[int], None] = lambda n: None) -> Run:
    return tickets.run(spec, root=root, threads=1, tick=tick)


def contents(run: Run) -> dict[str, Any]:
    """Everything that a ladder leaves, but its timings."""
    arrays = {f"{name}/{k}": v for name in run.tensor_names for k, v in run.tensors(name).items()}
    return {"records": json.dumps(run.records), **{k: v.tobytes() for k, v in arrays.items()}}


def setting(spec: TicketsSpec) -> Arms:
    data = load(spec.data)
    return Arms(spec, Task.of(data, spec.ladder.validation, 0), data.input_shape, spec.seed)
