"""The probe study: a network that somebody trained, or its checkpoints along training, layer by layer."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.data import Dataset, load
from nucleate.functions import find_function
from nucleate.machine.devices import check_device
from nucleate.models.build import from_function
from nucleate.models.weights import checkpoints, load_weights
from nucleate.probes.layers import probe
from nucleate.probes.records import Records
from nucleate.probes.resolve import Layer, resolve_layers
from nucleate.probes.tap import evaluating, tap
from nucleate.runs import Run, write_run
from nucleate.runs.sweep import Tick
from nucleate.spec import DataSpec, ProbeSpec
from nucleate.studies.pictures import balanced, principal

CHUNK = 1 << 20


def size(spec: ProbeSpec) -> int:
    """Checkpoints to probe."""
    return len(numbered(spec.weights))


def run(
    spec: ProbeSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
    progress: bool = False,
) -> Run:
    """Probe each checkpoint on the same points; a stopped run goes on with the next one.

    Records carry the checkpoint's file name, and the number in it as their epoch.

    Raises:
        ValueError: for a model, weights, data or a layer that cannot be found or do not fit.
    """
    if spec.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {spec.batch_size}")
    if not spec.model:
        raise ValueError("name the network: --model package.module:function")
    check_device(spec.device, "device")
    if threads is not None:
        torch.set_num_threads(threads)
    data = load(DataSpec(name=spec.data, train_size=spec.train_size, test_size=spec.test_size), data_root)
    drawn = torch.Generator().manual_seed(0)
    model = from_function(spec.model, data.input_shape, data.num_classes, drawn).to(spec.device)
    files = numbered(spec.weights)
    if files[0][1] is not None:
        load_weights(model, files[0][1])
    layers = resolve(spec, model, data)
    env = {
        "data": {"name": data.name, "digest": data.digest, "train": len(data.train_labels)},
        "class_names": list(data.class_names),
        "layers": [layer.name for layer in layers],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    content = {"data": data.digest, "weights": _digest([f for _, f in files if f]), "source": _source(spec)}
    with write_run(root, spec, env=env, **content) as writer:
        if writer.done:
            tick(len(files))
            return Run(writer.path)
        state = writer.restore()
        begun = json.loads(state)["probed"] if state is not None else 0
        tick(begun)
        index = balanced(data.train_labels, spec.picture, torch.Generator().manual_seed(0))
        for i, (number, file) in list(enumerate(files))[begun:]:
            if file is not None:
                load_weights(model, file)
            rows = probe_once(spec, model, data, progress=progress)
            base = {"study": spec.study, "step": number, "epoch": number}
            name = {"checkpoint": file.name} if file is not None else {}
            writer.append([{**base, **row, **name} for row in rows])
            if spec.picture:
                writer.save_tensors(f"epoch-{number:06d}", picture(model, layers, data, index, spec))
            writer.checkpoint(json.dumps({"probed": i + 1}).encode())
            tick(1)
        writer.finish()
        return Run(writer.path)


def numbered(weights: str) -> list[tuple[int, Path | None]]:
    """Files of weights with the last number in their names; from 0 where names hold none, or share one.

    Raises:
        ValueError: if there is no such file, or none in the folder.
    """
    if not weights:
        return [(0, None)]
    files = checkpoints(weights)
    numbers = [int((re.findall(r"\d+", file.stem) or [-1])[-1]) for file in files]
    if len(files) == 1 or -1 in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(files)))
    return sorted(zip(numbers, files, strict=True))


def resolve(spec: ProbeSpec, model: nn.Module, data: Dataset) -> list[Layer]:
    """The layers that are probed.

    Raises:
        ValueError: if a name matches no module, with the nearest ones, or the network does not take the data.
    """
    example = data.train_inputs[:2].to(spec.device)
    try:
        return resolve_layers(model, example, layers=spec.layers or "auto", classifier=spec.classifier, pool=spec.pool)
    except (RuntimeError, TypeError, IndexError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{spec.model} does not take inputs of shape {data.input_shape}: {told}") from error


def probe_once(spec: ProbeSpec, model: nn.Module, data: Dataset, *, progress: bool = False) -> Records:
    """One network on both splits."""
    splits = [
        list(zip(x.split(spec.batch_size), y.split(spec.batch_size), strict=True))
        for x, y in ((data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels))
    ]
    return probe(
        model,
        splits[0],
        test_batches=splits[1] if len(data.test_labels) else None,
        layers=spec.layers or "auto",
        k=spec.k,
        subsample=spec.subsample,
        num_classes=data.num_classes,
        classifier=spec.classifier,
        pool=spec.pool,
        convention=spec.convention,
        cache=None if spec.cache == "none" else spec.cache,
        device=spec.device,
        progress=progress,
    )


@torch.no_grad()
def picture(
    model: nn.Module, layers: list[Layer], data: Dataset, index: Tensor, spec: ProbeSpec
) -> dict[str, np.ndarray[Any, Any]]:
    """What the report draws: outputs of a few training points, and their principal coordinates in every layer."""
    inputs = data.train_inputs[index].to(spec.device)
    pools = {layer.tap: "flatten" if layer.tap == "input" else layer.pool or "auto" for layer in layers}
    with evaluating(model), tap(model, [*pools, "logits"], pool=pools) as seen:
        model(inputs)
    logits = seen["logits"].float().cpu()
    arrays = {
        "labels": data.train_labels[index].numpy(),
        "logits": logits.numpy(),
        "probs": logits.softmax(1).numpy(),
    }
    return arrays | {f"pca:{layer.name}": principal(seen[layer.tap]) for layer in layers if layer.name != "logits"}


def _digest(files: list[Path]) -> str:
    """SHA-256 over the files' contents."""
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                state.update(chunk)
    return state.hexdigest()


def _source(spec: ProbeSpec) -> str:
    """Source text of the user's own functions, so that editing one makes a new run."""
    found = [find_function(name) for name in (spec.model, spec.data) if ":" in name]
    modules = [inspect.getmodule(function) for function in found]
    return "\n".join(inspect.getsource(module) for module in modules if module is not None)
