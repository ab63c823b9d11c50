"""Strong tickets: what a random network already contains (Malach 2020; Pensia 2020; Ramanujan 2020)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nucleate.data import Dataset
from nucleate.data.sources import generator
from nucleate.geometry.subset_sum import best_subset_sum, subset_sum_error
from nucleate.machine.batches import points_at_once
from nucleate.machine.tuning import Tuning, replay_tuning, tuned
from nucleate.models import build
from nucleate.models.build import check_widths
from nucleate.pruning.learned import EdgePopup, freeze_random
from nucleate.runs import Record, Run, write_run
from nucleate.runs.sweep import Tick
from nucleate.spec import SupermaskSpec
from nucleate.studies.setting import prepare
from nucleate.training import Training
from nucleate.training.draws import seeded
from nucleate.training.loop import batches, learning_rate, loss_of

PATHS_PER_BLOCK = 4096
"""Target weights whose subset sums are searched at a time."""

UNIT = "training"


def size(spec: SupermaskSpec) -> int:
    """Trainings: what the progress bar counts."""
    return len(spec.widths) * (1 + len(spec.densities)) + 1


def run(
    spec: SupermaskSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Search subset sums, train masks on frozen weights; returns the finished run folder.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    if any(not 0 < d <= 1 for d in spec.densities) or any(n < 1 for n in (*spec.widths, *spec.candidates)):
        raise ValueError("densities are kept shares in (0, 1]; widths and candidates are at least 1")
    if spec.targets < 2 or spec.draws < 1:
        raise ValueError("targets must be at least 2 and draws at least 1")
    check_widths(spec.model.name, spec.widths)
    setting = prepare(spec, data_root, threads)
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        state = writer.restore()
        done = int(state.decode()) if state is not None else 0
        tick(done)
        study = _Supermask(spec, setting.data, replay_tuning(writer.env["tuning"]))
        for index, stage in enumerate(study.stages()):
            if index < done:
                continue
            writer.append(stage())
            writer.checkpoint(str(index + 1).encode())
            tick(1)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


class _Supermask:
    def __init__(self, spec: SupermaskSpec, data: Dataset, tuning: Tuning) -> None:
        self.spec, self.data, self.tuning = spec, data, tuning

    def stages(self) -> list[Callable[[], list[Record]]]:
        """The run in parts, each a function of the spec alone."""
        parts: list[Callable[[], list[Record]]] = [self.subset_sums]
        for width in self.spec.widths:
            parts.append(lambda width=width: self.dense(width))  # type: ignore[misc]
            parts += [
                lambda width=width, density=density: self.popup(width, density)  # type: ignore[misc]
                for density in self.spec.densities
            ]
        return parts

    def subset_sums(self) -> list[Record]:
        """Worst and typical error of the best subset over the targets, geometric means over the draws."""
        rows = []
        targets = torch.linspace(-0.5, 0.5, self.spec.targets, dtype=torch.float64)
        for n in self.spec.candidates:
            draw = generator(self.spec.seed, f"candidates {n}")
            held = torch.rand(self.spec.draws, n, generator=draw, dtype=torch.float64) * 2 - 1
            errors = subset_sum_error(held, targets.expand(self.spec.draws, -1)).clamp_min(1e-300)
            for metric, value in (
                ("subset_error", errors.amax(1).log().mean().exp()),
                ("subset_error_typical", errors.log().mean().exp()),
            ):
                rows.append(self._row(metric, float(value), candidates=n))
        return rows

    def dense(self, width: int) -> list[Record]:
        """The trained network of a width; and, at the smallest, its weights rebuilt from random paths."""
        model = self._model(width)
        train = replace(self.spec.train, optimizer="sgd", lr=self.spec.dense_lr)
        data, seed = self.data, self.spec.seed
        for _ in Training(model, data.train_inputs, data.train_labels, data.num_classes, train, self.tuning, seed=seed):
            pass
        rows = [self._row("accuracy", self._accuracy(model), width=width, density=1.0, arm="trained")]
        if width == min(self.spec.widths):
            for n in self.spec.candidates:
                rebuilt, error = self._rebuilt(model, n)
                rows.append(self._row("rebuilt_accuracy", self._accuracy(rebuilt), candidates=n))
                rows.append(self._row("rebuilt_error", error, candidates=n))
        return rows

    def _rebuilt(self, model: nn.Module, n: int) -> tuple[nn.Module, float]:
        """Every weight replaced by the best sum of n random two-layer paths u relu(v x), inputs being non-negative.

        A path with v > 0 adds u v to the weight; u, v ~ U[-1, 1] in units of twice the layer's largest weight.
        """
        rebuilt = copy.deepcopy(model)
        worst = 0.0
        with torch.no_grad():
            for name, w in rebuilt.named_parameters():
                if w.ndim < 2:
                    continue
                scale = 2 * float(w.abs().max())
                draw = generator(self.spec.seed, f"paths {name} {n}")
                parts = []
                for part in (w.flatten().double() / scale).split(PATHS_PER_BLOCK):
                    u, v = torch.rand(2, len(part), n, generator=draw, dtype=torch.float64) * 2 - 1
                    parts.append(best_subset_sum(u * v.clamp_min(0), part))
                new = torch.cat(parts).view(w.shape) * scale
                worst = max(worst, float((new - w).abs().max()) / scale)
                w.copy_(new)
        return rebuilt, worst

    def popup(self, width: int, density: float) -> list[Record]:
        """Edge-popup on frozen weights of a width, and the mask that it starts from."""
        spec, data = self.spec, self.data
        model = self._model(width)
        freeze_random(model, density, law=spec.weights, generator=generator(spec.seed, f"frozen {width} {density}"))
        popup = EdgePopup(model, density, generator=generator(spec.seed, f"scores {width} {density}"))
        told = {"width": width, "density": density}
        before = popup.masks()
        rows = [self._row("accuracy", self._accuracy(popup), arm="random mask", **told)]
        scores = list(popup.scores.values())
        train = spec.train
        optimizer = torch.optim.SGD(scores, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)
        model.train()
        with tuned(self.tuning), seeded(spec.seed, f"popup {width} {density}", "cpu"):
            for epoch in range(train.epochs):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(train, epoch)
                for index in batches(len(data.train_labels), train.batch_size, seed=spec.seed, epoch=epoch):
                    loss = loss_of(
                        popup(data.train_inputs[index]), data.train_labels[index], train.loss, data.num_classes
                    )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
        rows.append(self._row("accuracy", self._accuracy(popup), arm="edge-popup", **told))
        rows.append(self._row("overlap_with_start", popup.masks().compare(before)["all"], arm="edge-popup", **told))
        return rows

    def _model(self, width: int) -> nn.Module:
        spec = replace(self.spec.model, width=width)
        draw = torch.Generator().manual_seed(self.spec.seed)
        return build(spec, self.data.input_shape, self.data.num_classes, generator=draw)

    @torch.no_grad()
    def _accuracy(self, model: nn.Module | EdgePopup) -> float:
        network = (model.model if isinstance(model, EdgePopup) else model).eval()
        inputs, labels = self.data.test_inputs, self.data.test_labels
        with tuned(self.tuning):
            outputs = torch.cat([model(x) for x in inputs.split(points_at_once(network))])
        return int((outputs.argmax(1) == labels).sum()) / len(labels)

    def _row(self, metric: str, value: float, **fields: object) -> Record:
        split = "test" if "accuracy" in metric else ""
        epoch = self.spec.train.epochs if "width" in fields else 0
        return {
            "study": self.spec.study,
            "seed": self.spec.seed,
            "step": 0,
            "epoch": epoch,
            "layer": "",
            "split": split,
            "metric": metric,
            "value": value,
            **fields,
        }


def table(run: Run) -> str:
    """What the run measured, as text for the terminal."""
    lines = []
    for r in run.records:
        told = {k: r[k] for k in ("arm", "width", "density", "candidates") if k in r}
        lines.append(f"{r['metric']:22s}{r['value']:12.4g}  {', '.join(f'{k} {v}' for k, v in told.items())}")
    return "\n".join(lines)
