"""Prune one trained network: to a density, or as far as its measure bears."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.data import Dataset
from nucleate.functions import find_function
from nucleate.machine.tuning import tuned
from nucleate.models.weights import load_weights
from nucleate.probes.macs import layer_macs, remaining_macs
from nucleate.probes.tap import evaluating
from nucleate.pruning.coverage import coverage
from nucleate.pruning.masks import Masks
from nucleate.pruning.prune import prune
from nucleate.pruning.select import check_density
from nucleate.runs import Run, write_run
from nucleate.runs.store import Writer, write_atomic
from nucleate.runs.sweep import Tick
from nucleate.spec import PruneRunSpec
from nucleate.studies.compare import SCORE_BATCH, criterion
from nucleate.studies.dense import arrays
from nucleate.studies.setting import Setting, prepare, sources
from nucleate.training import Training
from nucleate.training.loop import loss_of

STEPS = 8
"""Densities that a search tries: the last bracket is 1000^(1 / 2^8) wide, about 3 %."""
LEAST = 1e-3
"""Smallest density that a search tries."""
BATCH = 1024


@dataclass(frozen=True)
class Outcome:
    """The network at one density."""

    density: float
    validation: float
    masks: Masks
    record: dict[str, Any]


def size(spec: PruneRunSpec) -> int:
    """Densities that are tried: what the progress bar counts."""
    return 1 if spec.density is not None else STEPS


def run(
    spec: PruneRunSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Prune the network whose weights the spec names; returns its finished run folder.

    With `largest_loss` the density is searched by bisection in its logarithm, on validation points that are kept out
    of the further training (whoever trained the weights may have seen them); held-out points are looked at once, at
    the end. The folder holds `weights.safetensors`, a
    plain state_dict with zeros that loads without nucleate, `masks.safetensors`, and `card.md`.

    Raises:
        ValueError: for a spec, model, weights, data or a folder that cannot be used; a largest loss that even the
            gentlest density tried exceeds.
    """
    check(spec)
    setting = prepare(spec, data_root, threads)
    load_weights(setting.model, spec.weights)
    coverage(setting.model, layers=spec.prune.layers or None)
    content = setting.content | {
        "weights": _digest(Path(spec.weights)),
        "metric": sources(spec.metric, spec.prune.method),
    }
    with write_run(root, spec, env=setting.env, **content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        Search(setting, spec, writer).run(tick)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def check(spec: PruneRunSpec) -> None:
    """Refuse a spec before anything is read.

    Raises:
        ValueError: with the field and what it must be.
    """
    if not spec.weights:
        raise ValueError("name the trained weights: --weights file.safetensors")
    if (spec.density is None) == (spec.largest_loss is None):
        raise ValueError("give either --density, the kept share, or --largest-loss, how much worse it may become")
    if spec.density is not None:
        check_density(spec.density)
    if spec.largest_loss is not None and not spec.largest_loss >= 0:
        raise ValueError(f"largest_loss must be at least 0, not {spec.largest_loss}")
    if not 0 < spec.validation < 1:
        raise ValueError(f"validation must be a share in (0, 1), not {spec.validation}")
    if spec.prune.epochs < 0 or spec.prune.examples < 1:
        raise ValueError("prune.epochs must be at least 0 and prune.examples at least 1")
    if spec.prune.schedule != "one-shot":
        raise ValueError("prune.schedule: one network is pruned in one shot; `nucleate compare` does iterative ladders")
    criterion(spec.prune.method)
    measure(spec.metric)


def measure(name: str) -> Callable[[Tensor, Tensor], float]:
    """Share of points whose largest output is their label, or the user's function of (outputs, labels).

    >>> measure("accuracy")(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    if name == "accuracy":
        return lambda outputs, labels: float((outputs.argmax(-1) == labels).double().mean())
    return find_function(name)


def covered(spec: PruneRunSpec, data_root: Path | None = None) -> str:
    """What of the spec's model is prunable and what not, with the reasons, as text.

    Raises:
        ValueError: for data, a model or layers that cannot be used.
    """
    model = prepare(spec, data_root, None).model
    return str(coverage(model, layers=spec.prune.layers or None))


class Search:
    """Tries densities, keeps what was found, writes the best."""

    def __init__(self, setting: Setting, spec: PruneRunSpec, writer: Writer) -> None:
        self.spec, self.writer, self.data = spec, writer, setting.data
        self.model = setting.model.to(spec.train.device)
        self.tuning = setting.training(writer).tuning
        self.start = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        order = torch.randperm(len(self.data.train_labels), generator=torch.Generator().manual_seed(spec.seed))
        held = max(1, round(spec.validation * len(order))) if spec.largest_loss is not None else 0
        self.held, self.used = order[:held], order[held:]
        self.metric = measure(spec.metric)

    def run(self, tick: Tick) -> None:
        """Search, or prune once; then measure on the held-out points and write everything."""
        spec = self.spec
        dense = self._judge(*self._test())
        if spec.density is not None:
            best = self._at(spec.density)
            tick(1)
        else:
            best = self._search(tick)
        after = self._judge(*self._test())
        self._write(best, dense, after)

    def _search(self, tick: Tick) -> Outcome:
        spec = self.spec
        assert spec.largest_loss is not None
        sign = 1.0 if spec.better == "higher" else -1.0
        reference = self._judge(*self._validation())
        low, high = LEAST, 1.0
        density, kept = (low * high) ** 0.5, 1.0
        walked: dict[float, float] = self._walked()
        for _ in range(STEPS):
            value = walked.get(density)
            if value is None:
                value = self._at(density).validation
                self._note(density, value)
            tick(1)
            if sign * (reference - value) <= spec.largest_loss:
                high = kept = density
            else:
                low = density
            density = (low * high) ** 0.5
        if kept == 1.0:
            raise ValueError(
                f"no density that was tried loses at most {spec.largest_loss:g} of {spec.metric}, down from 1 in "
                f"{STEPS} steps; allow more loss, or train on after pruning (--prune.epochs)"
            )
        return self._at(kept)

    def _at(self, density: float) -> Outcome:
        """Prune from the given weights, train on; the model is left so."""
        spec, how = self.spec, self.spec.prune
        self.model.load_state_dict(self.start)
        index = self.used[: how.examples]
        device = spec.train.device
        pairs = zip(
            self.data.train_inputs[index].split(SCORE_BATCH),
            self.data.train_labels[index].split(SCORE_BATCH),
            strict=True,
        )
        done = prune(
            self.model,
            criterion(how.method),
            density,
            batches=[(x.to(device), y.to(device)) for x, y in pairs],
            loss=partial(loss_of, kind=spec.train.loss, num_classes=self.data.num_classes),
            scope=how.scope,
            shape=how.shape,
            layers=spec.prune.layers or None,
            seed=spec.seed,
        )
        if how.epochs:
            train = replace(spec.train, epochs=how.epochs, lr=how.lr)
            inputs, labels = self.data.train_inputs[self.used], self.data.train_labels[self.used]
            for _ in Training(
                self.model,
                inputs,
                labels,
                self.data.num_classes,
                train,
                self.tuning,
                seed=spec.seed,
                masks=done.masks,
            ):
                pass
        value = self._judge(*self._validation()) if len(self.held) else float("nan")
        return Outcome(density, value, done.masks, done.record)

    def _validation(self) -> tuple[Tensor, Tensor]:
        return self.data.train_inputs[self.held], self.data.train_labels[self.held]

    def _test(self) -> tuple[Tensor, Tensor]:
        return self.data.test_inputs, self.data.test_labels

    @torch.no_grad()
    def _judge(self, inputs: Tensor, labels: Tensor) -> float:
        with evaluating(self.model), tuned(self.tuning):
            outputs = torch.cat([self.model(x.to(self.spec.train.device)).float().cpu() for x in inputs.split(BATCH)])
        return float(self.metric(outputs, labels))

    def _walked(self) -> dict[float, float]:
        self.writer.restore()
        return {r["density"]: r["value"] for r in self.writer.records if r["split"] == "validation"}

    def _note(self, density: float, value: float) -> None:
        self.writer.append([self._row(density, "validation", self.spec.metric, value)])
        self.writer.checkpoint(b"walked")

    def _row(self, density: float, split: str, metric: str, value: float, layer: str = "") -> dict[str, Any]:
        base = {"study": "prune", "seed": self.spec.seed, "step": 0, "epoch": 0, "density": density, "layer": layer}
        return {**base, "split": split, "metric": metric, "value": value}

    def _write(self, best: Outcome, dense: float, after: float) -> None:
        masks, spec = best.masks, self.spec
        macs = layer_macs(self.model, self.data.train_inputs[:1].to(spec.train.device))
        cost = {"macs": (sum(macs.values()), remaining_macs(macs, masks.densities))}
        self.writer.append(
            [
                self._row(1.0, "test", spec.metric, dense),
                self._row(masks.density, "test", spec.metric, after),
                self._row(1.0, "", "macs", float(cost["macs"][0])),
                self._row(masks.density, "", "macs", cost["macs"][1]),
                *(self._row(masks.density, "", "density", v, layer) for layer, v in masks.densities.items()),
            ]
        )
        self.writer.save_tensors("weights", arrays(self.model))
        self.writer.save_tensors("masks", {name: mask.cpu().numpy() for name, mask in masks.items()})
        write_atomic(self.writer.path / "record.json", json.dumps(best.record, indent=1, default=str).encode())
        card = card_text(spec, self.data, self.model, masks, dense, after, cost["macs"])
        write_atomic(self.writer.path / "card.md", card.encode())


def card_text(
    spec: PruneRunSpec,
    data: Dataset,
    model: nn.Module,
    masks: Masks,
    dense: float,
    after: float,
    macs: tuple[float, float],
) -> str:
    """What a reader of the pruned model must know, as Markdown."""
    how = spec.prune
    trained = f"trained on for {how.epochs} epochs at learning rate {how.lr:g}" if how.epochs else "not trained on"
    layers = "\n".join(f"| {name} | {d:.4f} |" for name, d in masks.densities.items())
    parameters = sum(p.numel() for p in model.parameters())
    held_out = f"{len(data.test_labels):,} held-out points of {data.name} ({spec.better} is better)"
    return f"""# {spec.model.name}, pruned

{masks.kept:,} of {masks.count:,} prunable weights are left ({masks.density:.2%}), of {parameters:,} parameters in all.
Method {how.method}, scope {how.scope}, shape {how.shape}, seed {spec.seed}; {trained}.

| | before | after |
|---|---|---|
| {spec.metric} on {held_out} | {dense:.4f} | {after:.4f} |
| multiply-adds a point, in theory | {macs[0]:,.0f} | {macs[1]:,.0f} |

Zeros in a dense file make it neither smaller nor faster by themselves: `nucleate.save_sparse` makes it smaller,
`nucleate.shrink` and `nucleate.accelerate` make it faster, by measurement.

## Loading without nucleate

```python
from safetensors.torch import load_file

model.load_state_dict(load_file("tensors/weights.safetensors"))
```

## Kept share by layer

| layer | kept |
|---|---|
{layers}
"""


def _digest(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read the weights {path}: {error.strerror or error}") from None
