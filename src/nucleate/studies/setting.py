"""What every training study begins with: data, a fresh network, what to write down about them, a training."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from nucleate.data import Dataset, load
from nucleate.functions import find_function
from nucleate.machine.selftest import self_test
from nucleate.machine.tuning import as_dict, choose_tuning, replay_tuning
from nucleate.models import build
from nucleate.models.pretrained import is_pretrained
from nucleate.pruning.coverage import coverage
from nucleate.runs.store import Writer
from nucleate.spec import DataSpec, ModelSpec, TrainSpec
from nucleate.training import Training, parallel
from nucleate.training.loop import check
from nucleate.training.survivors import break_even


class TrainingSpec(Protocol):
    """A spec with the parts that a training needs."""

    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataSpec: ...
    @property
    def model(self) -> ModelSpec: ...
    @property
    def train(self) -> TrainSpec: ...


@dataclass(frozen=True)
class Setting:
    """Data and network of a spec."""

    spec: TrainingSpec
    data: Dataset
    model: nn.Module
    """With initial weights drawn from the spec's seed."""
    env: dict[str, Any]
    """For env.json: the tuning chosen on this machine, data, versions."""
    content: dict[str, str]
    """Digests that name the run beside its spec: of the data and of the user's own source."""

    def training(self, writer: Writer) -> Training:
        """A training of the network, with the tuning that its run was begun with.

        Raises:
            ValueError: if this machine cannot follow that tuning, or the run was begun on another number of processes.
        """
        ranks = writer.env.get("ranks", 1)
        if ranks != parallel.ranks():
            raise ValueError(
                f"{writer.path} was begun on {ranks} processes, not {parallel.ranks()}: go on with "
                f"torchrun --nproc-per-node {ranks}, or start a new run in another folder"
            )
        return self.tuned_training(writer.env["tuning"])

    def tuned_training(self, tuning: Mapping[str, Any]) -> Training:
        """A training of the network, with a stored tuning."""
        return Training(
            self.model,
            self.data.train_inputs,
            self.data.train_labels,
            self.data.num_classes,
            self.spec.train,
            replay_tuning(tuning, device=self.spec.train.device),
            seed=self.spec.seed,
        )


def prepare(spec: TrainingSpec, data_root: Path | None, threads: int | None) -> Setting:
    """Load the data, draw the network and choose the tuning of a spec.

    Raises:
        ValueError: for numbers that make no training; for data, a model or a device that cannot be used.
    """
    check(spec.train)
    data = load(spec.data, data_root)
    model = build(spec.model, data.input_shape, data.num_classes, generator=torch.Generator().manual_seed(spec.seed))
    if ":" in spec.model.name or is_pretrained(spec.model.name):
        _check_outputs(spec.model.name, model, data)
    tuning = choose_tuning(
        precision=spec.train.precision,
        threads=spec.train.threads or threads,
        convolutional=any(isinstance(m, nn.Conv2d) for m in model.modules()),
        device=spec.train.device,
    )
    if spec.train.sparse:
        below = break_even(
            model,
            list(coverage(model).layouts),
            data.train_inputs,
            data.train_labels,
            data.num_classes,
            spec.train,
            tuning,
        )
        tuning = replace(tuning, sparse_below=below)
    env = {
        "tuning": as_dict(tuning),
        "ranks": parallel.ranks(),
        "self_test": asdict(self_test(spec.train.device)) if spec.train.precision != "fp32" else None,
        "data": {"name": data.name, "digest": data.digest, "train": len(data.train_labels)},
        "class_names": list(data.class_names),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return Setting(spec, data, model, env, {"data": data.digest, "source": sources(spec.data.name, spec.model.name)})


def _check_outputs(name: str, model: nn.Module, data: Dataset) -> None:
    """Two points through a user's network, before anything is written."""
    inputs = data.train_inputs[:2]
    was = model.training
    try:
        with torch.no_grad():
            out = model.eval()(inputs)
    # The network is the user's and may raise anything.
    except Exception as error:
        shape = tuple(inputs.shape)
        raise ValueError(f"{name} fails on inputs of shape {shape}: {type(error).__name__}: {error}") from error
    finally:
        model.train(was)
    wanted = (len(inputs), data.num_classes)
    # A pretrained model may know more tokens than the data has.
    classes = min(data.num_classes, out.shape[-1]) if is_pretrained(name) and isinstance(out, torch.Tensor) else None
    if not isinstance(out, torch.Tensor) or (len(out), classes or out.shape[-1]) != wanted:
        given = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"{name} must return logits of shape {wanted} for two points, not {given}")


def sources(*names: str) -> str:
    """Source text of the user's own functions among the names, so that editing one makes a new run."""
    own = [name for name in names if ":" in name]
    return "\n".join(inspect.getsource(inspect.getmodule(find_function(name)) or find_function(name)) for name in own)
