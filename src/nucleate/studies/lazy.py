"""Lazy: a very wide shallow network trains like its neural tangent kernel (Jacot et al. 2018, Chizat et al. 2019)."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nucleate.data.sources import generator
from nucleate.kernels.exact import ntk
from nucleate.kernels.regression import (
    Dynamics,
    alignment,
    complexity_bound,
    kernel_distance,
    relative_drift,
    solve,
)
from nucleate.machine.tuning import as_dict, choose_tuning, replay_tuning, tuned
from nucleate.runs import Record, Run, write_run
from nucleate.runs.store import Writer
from nucleate.runs.sweep import Tick
from nucleate.spec import LazySpec
from nucleate.studies.points import Points, take
from nucleate.studies.progress import Progress
from nucleate.studies.setting import sources
from nucleate.studies.shallow import draw

SLOPES = ("gap", "drift", "movement")
"""Measures whose power of the width is fitted."""


def check(spec: LazySpec) -> None:
    """Refuse a spec that makes no study.

    Raises:
        ValueError: with the field, what was given and what it must be.
    """
    if len(spec.widths) < 1 or min(spec.widths) < 1:
        raise ValueError(f"widths must be whole numbers from 1 on, not {list(spec.widths)}")
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds) or min(spec.seeds) < 0:
        raise ValueError(f"seeds must be different whole numbers from 0 on, not {list(spec.seeds)}")
    if spec.steps < 1 or spec.probe < 2 or not 0 < spec.rate_share < 1:
        raise ValueError("steps must be at least 1, probe at least 2 and rate_share in (0, 1)")
    if any(not 0 <= q <= 1 for q in (*spec.noises, spec.data.label_noise)):
        raise ValueError(f"label noise is a share in [0, 1], not {[*spec.noises, spec.data.label_noise]}")


def size(spec: LazySpec) -> int:
    """What the progress bar counts: networks, each by its width. Raises as `check`."""
    check(spec)
    return len(spec.seeds) * sum(spec.widths)


def run(
    spec: LazySpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Train the ladders and fit their slopes; returns the finished run folder. Resumes after the last network.

    Records by width and seed: `gap`, the root mean square difference on held-out points between what the network has
    learned, f_t - f_0, and what its infinite-width kernel says it has at the same step; `drift` and `kernel_distance`
    of its own kernel; `movement` of the first layer, |W_t - W_0| / |W_0|; errors. At the end the slope of each in
    log-log, by seed.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    check(spec)
    points = take(spec.data, data_root, size=spec.data.train_size, validation=0)
    fresh = choose_tuning(precision="auto", threads=spec.threads or threads, convolutional=False, device="cpu")
    env = {
        "tuning": as_dict(fresh),
        "data": {"name": points.data.name, "digest": points.data.digest, "train": len(points.clean)},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    with write_run(root, spec, env=env, data=points.data.digest, source=sources(spec.data.name)) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        progress = Progress(writer)
        with tuned(replay_tuning(writer.env["tuning"])):
            ladder = _Ladder(spec, points)
            if not progress.skip():
                writer.append(ladder.kernel_rows())
                progress.finished()
            for seed in spec.seeds:
                for width in spec.widths:
                    if not progress.skip():
                        writer.append(ladder.network_rows(seed, width))
                        progress.finished()
                    tick(width)
        writer.append(_slopes(spec, writer))
        writer.update_env(seconds=round(progress.seconds, 2))
        writer.finish()
        return Run(writer.path)


class _Ladder:
    """The points, their exact kernel, and networks of any width on them."""

    def __init__(self, spec: LazySpec, points: Points) -> None:
        self.spec, self.points = spec, points
        self.classes = points.data.num_classes
        self.x, self.test = (F.normalize(x.flatten(1).double()) for x in (points.inputs, points.data.test_inputs))
        self.truth = points.data.test_labels
        self.kernel, self.cross = ntk(self.x, depth=1), ntk(self.test, self.x, depth=1)
        self.rate = spec.rate_share * Dynamics(self.kernel, torch.zeros(len(self.x), 1)).largest_rate
        self.probe = self.test[: spec.probe]
        self.probe_kernel = ntk(self.probe, depth=1)

    def _targets(self, seed: int, noise: float) -> Tensor:
        given = self.points.labels(seed, noise)[0]
        return F.one_hot(given, self.classes).double() - 1 / self.classes

    def _error(self, outputs: Tensor) -> float:
        return float((outputs.argmax(1) != self.truth).double().mean())

    def kernel_rows(self) -> Iterator[Record]:
        """Spectrum and alignment of the exact kernel; its bound and its error at each label noise."""
        values = torch.linalg.eigvalsh(self.kernel).flip(0)
        ranks = sorted({round(len(values) ** (i / 40)) for i in range(41)})
        for rank in ranks:
            yield self._row(None, "", "eigenvalue", float(values[rank - 1]), rank=rank)
        yield self._row(None, "train", "alignment", alignment(self.kernel, self._targets(self.spec.seeds[0], 0.0)))
        first = ntk(self.x, depth=1, frozen=(1,)) / 2
        for seed in self.spec.seeds:
            for noise in self.spec.noises:
                targets = self._targets(seed, noise)
                signs = torch.where(targets > 0, 1.0, -1.0).double()
                yield self._row(seed, "test", "bound", complexity_bound(first, signs), noise=noise)
                error = self._error(self.cross @ solve(self.kernel, targets))
                yield self._row(seed, "test", "kernel_error", error, noise=noise)

    def network_rows(self, seed: int, width: int) -> Iterator[Record]:
        """Train one network and measure it against its kernel."""
        spec = self.spec
        targets = self._targets(seed, spec.data.label_noise)
        net = draw(self.x.shape[1], width, self.classes, generator(seed, f"shallow network of {width}"))
        start = deepcopy(net)
        first = start.kernel(self.probe)
        x, test = self.x.float(), self.test.float()
        net.train(x, targets.float(), steps=spec.steps, rate=self.rate)
        begun, learned = start(test).double(), net(test).double() - start(test).double()
        infinite = Dynamics(self.kernel, targets - start(x).double()).change(
            self.cross, spec.steps, rate=self.rate, discrete=True
        )
        last = net.kernel(self.probe)
        measures = {
            ("test", "gap"): float((learned - infinite).square().mean().sqrt()),
            ("test", "error"): self._error(begun + learned),
            ("test", "kernel_error"): self._error(begun + infinite),
            ("train", "error"): float((net(x).argmax(1) != targets.argmax(1)).double().mean()),
            ("test", "drift"): relative_drift(last, first),
            ("test", "kernel_distance"): kernel_distance(last, first),
            ("test", "start_gap"): relative_drift(first, self.probe_kernel),
            ("", "movement"): float((net.first - start.first).norm() / start.first.norm()),
        }
        for (split, metric), value in measures.items():
            yield self._row(seed, split, metric, value, width=width)

    def _row(self, seed: int | None, split: str, metric: str, value: float, **where: Any) -> Record:
        row = {"study": self.spec.study, "seed": seed, "step": self.spec.steps, "epoch": 0, "layer": ""}
        return row | {"split": split, "metric": metric, "value": value} | where


def slope(widths: list[int], values: list[float]) -> float:
    """Power of the width that a measure follows: least squares in log-log.

    >>> round(slope([1, 4, 16], [8.0, 4.0, 2.0]), 6)
    -0.5
    """
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def _slopes(spec: LazySpec, writer: Writer) -> Iterator[Record]:
    if len(set(spec.widths)) < 2:
        return
    rows = writer.records
    for metric in SLOPES:
        for seed in spec.seeds:
            found = {r["width"]: r["value"] for r in rows if r["metric"] == metric and r["seed"] == seed}
            value = slope(list(found), list(found.values()))
            row = {"study": spec.study, "seed": seed, "step": spec.steps, "epoch": 0, "layer": "", "split": ""}
            yield row | {"metric": f"{metric}_slope", "value": value}


def ladder_table(run: Run) -> str:
    """Means over seeds by width, and the slopes with their 95 % intervals."""
    from scipy.stats import t

    shown = ("gap", "drift", "movement", "kernel_distance", "start_gap", "error", "kernel_error")
    cells: dict[tuple[int, str], list[float]] = {}
    slopes: dict[str, list[float]] = {}
    for row in run.records:
        if "width" in row and not (row["metric"] == "error" and row["split"] == "train"):
            cells.setdefault((row["width"], row["metric"]), []).append(row["value"])
        if row["metric"].endswith("_slope"):
            slopes.setdefault(row["metric"], []).append(row["value"])
    lines = [f"{'width':>8s}" + "".join(f"{name:>17s}" for name in shown)]
    lines += [
        f"{width:8d}" + "".join(f"{np.mean(cells[width, name]):17.4g}" for name in shown)
        for width in dict.fromkeys(w for w, _ in cells)
    ]
    for name, values in slopes.items():
        n = len(values)
        half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        interval = f" [{np.mean(values) - half:.3f}, {np.mean(values) + half:.3f}]" if n > 1 else ""
        lines.append(f"{name.replace('_', ' ')} along width: {np.mean(values):.3f}{interval} over {n} seeds")
    return "\n".join(lines)
