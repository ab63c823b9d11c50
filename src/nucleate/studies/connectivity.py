"""Linear mode connectivity: is a network, from step k on, stable to the noise of training? (Frankle et al. 2020)."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.data import Dataset
from nucleate.machine.batches import points_at_once
from nucleate.machine.tuning import Tuning, replay_tuning, tuned
from nucleate.models import build
from nucleate.probes.landscape import barrier
from nucleate.pruning.masks import Masks
from nucleate.runs import Record, Run, write_run
from nucleate.runs.sweep import Tick
from nucleate.spec import ConnectivitySpec, TicketsSpec
from nucleate.studies import tickets
from nucleate.studies.ladder.masks import prunable
from nucleate.studies.setting import prepare
from nucleate.training.draws import seeded
from nucleate.training.loop import batches
from nucleate.training.steps import StepTraining

NOISE = 1_000_003
"""Added, once and twice, to the seed of the run: the seeds of the two copies' noise."""


def size(spec: ConnectivitySpec) -> int:
    """Epochs of all trainings: what the progress bar counts."""
    ladders = {k: tickets.size(_ladder(spec, k)) for k in spec.steps} if max(spec.levels) else {}
    return sum(ladders.values()) + 3 * spec.train.epochs * len(spec.steps) * len(spec.levels)


def run(
    spec: ConnectivitySpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Train pairs and measure the line between them; returns the finished run folder.

    Tickets come from ladders of the tickets study, one for each k, which are runs of their own in the same root.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    if not spec.steps or not spec.levels or min(*spec.steps, *spec.levels) < 0:
        raise ValueError("steps and levels are lists of numbers from 0 on")
    setting = prepare(spec, data_root, threads)
    # Ladders hold validation points out, so they end earlier than pairs do, and must train after the step.
    climbs = any(spec.levels)
    points = len(setting.data.train_labels) - (spec.ladder.validation if climbs else 0)
    end = spec.train.epochs * len(batches(points, spec.train.batch_size, seed=0, epoch=0))
    if max(spec.steps) > end - climbs:
        raise ValueError(f"step {max(spec.steps)} lies beyond the training's end at step {end}")
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        tuning = replay_tuning(writer.env["tuning"])
        state = writer.restore()
        done = int(state.decode()) if state is not None else 0
        pairs = [(k, level) for k in spec.steps for level in spec.levels]
        for index, (k, level) in enumerate(pairs):
            masks = None
            if level:
                ladder = tickets.run(_ladder(spec, k), root=root, data_root=data_root, threads=threads, tick=tick)
                masks = tickets.read_ticket(ladder, level, spec.seed)[0]
            if index >= done:
                writer.append(_pair(spec, setting.data, tuning, k, level, masks))
                writer.checkpoint(str(index + 1).encode())
            tick(3 * spec.train.epochs)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def _ladder(spec: ConnectivitySpec, k: int) -> TicketsSpec:
    ladder = replace(spec.ladder, rounds=max(spec.levels), controls=(), control_levels=(), rewind_step=k)
    return TicketsSpec(
        recipe=f"{spec.recipe}-connected", seed=spec.seed, data=spec.data, model=spec.model, train=spec.train,
        ladder=ladder,
    )  # fmt: skip


def _pair(
    spec: ConnectivitySpec, data: Dataset, tuning: Tuning, k: int, level: int, masks: Masks | None
) -> list[Record]:
    model = build(spec.model, data.input_shape, data.num_classes, generator=torch.Generator().manual_seed(spec.seed))
    held = Masks.dense(prunable(model)) if masks is None else masks
    inputs, labels, classes = data.train_inputs, data.train_labels, data.num_classes

    def training(seed: int) -> StepTraining:
        own = copy.deepcopy(model)
        return StepTraining(own, inputs, labels, classes, spec.train, tuning, seed=seed, masks=held)

    first = training(spec.seed)
    first.run(k)
    point = first.snapshot()
    ends = []
    for copied in (1, 2):
        branch = training(spec.seed + copied * NOISE)
        branch.rewind(point, keep_noise=True)
        branch.run(branch.horizon)
        ends.append({name: v.detach().clone() for name, v in branch.model.state_dict().items()})
    told = {"k": k, "level": level, "arm": "dense" if not level else f"ticket, level {level}", "density": held.density}
    rows = []
    for name, value in line(first.model, ends[0], ends[1], data, tuning, spec.points):
        base = {"study": spec.study, "seed": spec.seed, "step": k, "epoch": spec.train.epochs, "layer": ""}
        rows.append({**base, **told, **name, "value": value})
    return rows


def line(
    model: nn.Module, first: dict[str, Tensor], second: dict[str, Tensor], data: Dataset, tuning: Tuning, points: int
) -> Iterator[tuple[dict[str, object], float]]:
    """Barriers and values along the line between two networks, on held-out points.

    barrier = max over t of E((1 - t) W1 + t W2) - (E(W1) + E(W2)) / 2, for the error and the cross-entropy; beside it
    the rise above the straight line between the ends. Statistics of batch normalisation: interpolated, and, where
    there are any, taken anew from training points at every t.
    """
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    for statistics in ("interpolated", "re-estimated") if normed else ("interpolated",):
        losses: list[float] = []

        def error(net: nn.Module, statistics: str = statistics, losses: list[float] = losses) -> float:
            with tuned(tuning), torch.no_grad():
                if statistics == "re-estimated":
                    _estimate(net, data.train_inputs)
                net.eval()
                parts = [net(x).float() for x in data.test_inputs.split(points_at_once(net))]
            logits = torch.cat(parts)
            losses.append(float(F.cross_entropy(logits.double(), data.test_labels)))
            return float((logits.argmax(1) != data.test_labels).double().mean())

        rise, errors = barrier(model, first, second, error, points=points)
        for metric, values in (("error", errors), ("loss", losses)):
            told = {"split": "test", "statistics": statistics}
            height = max(values) - (values[0] + values[-1]) / 2
            yield {"metric": f"{metric}_barrier", **told}, height
            for i, value in enumerate(values):
                yield {"metric": metric, "position": i / (points - 1), **told}, value
        yield {"metric": "error_rise", "split": "test", "statistics": statistics}, rise
        distance = np.sqrt(
            sum(float((first[n] - second[n]).double().square().sum()) for n, _ in model.named_parameters())
        )
        yield {"metric": "distance", "split": "", "statistics": statistics}, float(distance)


@torch.no_grad()
def _estimate(model: nn.Module, inputs: Tensor, size: int = 512) -> None:
    """Running statistics of batch normalisation anew: averages over batches of training points."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    model.train()
    with seeded(0, "statistics", inputs.device):
        for index in batches(len(inputs), min(size, len(inputs)), seed=0, epoch=0):
            model(inputs[index])
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


def table(run: Run) -> str:
    """What the run measured, as text for the terminal."""
    lines = (
        f"k {r['k']:6d}  {r['arm']:18s} barrier {100 * r['value']:6.2f} points  ({r['statistics']})"
        for r in run.select(metric="error_barrier")
    )
    return "\n".join(lines)
