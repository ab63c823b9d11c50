"""A dense training whose initial and final weights other studies start from."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from torch import Tensor, from_numpy, nn

from nucleate.runs import Run, write_run
from nucleate.runs.store import run_path
from nucleate.runs.sweep import Tick
from nucleate.spec import DenseSpec
from nucleate.studies.setting import prepare
from nucleate.studies.testing import evaluate

CHECKPOINT_SECONDS = 20.0


def size(spec: DenseSpec) -> int:
    """Epochs: what the progress bar counts."""
    return spec.train.epochs


def run(
    spec: DenseSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Train one network; its run keeps the tensors `initial` and `final`, and how it does on held-out points.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    setting = prepare(spec, data_root, threads)
    path = run_path(root, spec, **setting.content)
    if (path / "DONE").exists():
        tick(spec.train.epochs)
        return Run(path)
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            tick(spec.train.epochs)
            return Run(writer.path)
        writer.save_tensors("initial", arrays(setting.model))
        training = setting.training(writer)
        state = writer.restore()
        if state is not None:
            training.load(state)
            tick(training.epoch)
        last = begun = time.monotonic()
        for epoch in training:
            if epoch.number in spec.keep:
                writer.save_tensors(f"epoch-{epoch.number:06d}", arrays(setting.model))
            if time.monotonic() - last > CHECKPOINT_SECONDS:
                writer.checkpoint(training.state())
                last = time.monotonic()
            tick(1 if epoch.number else 0)
        base = {"study": spec.study, "seed": spec.seed, "epoch": training.epoch, "step": training.step, "layer": ""}
        measured = evaluate(setting.model, setting.data, training.tuning, loss=spec.train.loss)
        writer.append([{**base, "split": s, "metric": m, "value": v} for (s, m), v in measured.values.items()])
        writer.save_tensors("final", arrays(setting.model))
        writer.save_tensors("held-out", {"test_correct": measured.correct})
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Weights and buffers by name, each copied."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def weights(run: Run, when: str) -> dict[str, Tensor]:
    """The stored state of a dense run: "initial", "final", or "epoch-000003" of an epoch that its spec keeps."""
    return {name: from_numpy(value) for name, value in run.tensors(when).items()}
