"""Prune one trained network: to a density, or as far as its measure bears."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.compact.files import save_sparse
from nucleate.functions import find_function
from nucleate.machine.batches import points_at_once
from nucleate.machine.tuning import tuned
from nucleate.models.pretrained import is_pretrained
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
from nucleate.studies import retrain as further
from nucleate.studies.card import card_text
from nucleate.studies.compare import SCORE_BATCH, criterion
from nucleate.studies.dense import arrays
from nucleate.studies.frontier import Kind, parse_target
from nucleate.studies.retrain import retrain
from nucleate.studies.setting import Setting, prepare, sources
from nucleate.studies.target import PARTS, Towards
from nucleate.training.loop import loss_of

UNIT = "network"
STEPS = 8
"""Densities that a search tries: the last bracket is 1000^(1 / 2^8) wide, about 3 %."""
LEAST = 1e-3
"""Smallest density that a search tries."""


@dataclass(frozen=True)
class Outcome:
    """The network at one density."""

    density: float
    validation: float
    masks: Masks
    record: dict[str, Any]


def size(spec: PruneRunSpec) -> int:
    """Networks that are tried: what the progress bar counts."""
    if spec.target:
        return PARTS * len(spec.methods) * len(spec.shapes)
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
    of the further training (whoever trained the weights may have seen them); with `target` so are method, shape and the
    density of each layer (`Towards`). Held-out points are looked at once, at the end. The folder holds
    `weights.safetensors`, a plain state_dict with zeros that loads without nucleate, `masks.safetensors`,
    `sparse.safetensors`, which is small, and `card.md`; of a model of `transformers` its folder, pruned, too.

    Raises:
        ValueError: for a spec, model, weights, data or a folder that cannot be used; a largest loss that even the
            gentlest density tried exceeds.
    """
    check(spec)
    setting, early = _loaded(spec, data_root, threads)
    coverage(setting.model, layers=spec.prune.layers or None)
    content = setting.content | {
        "weights": _digests(spec),
        "metric": sources(spec.metric, spec.prune.method, *spec.methods),
    }
    with write_run(root, spec, env=setting.env, **content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        Search(setting, spec, writer, early).run(tick)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def check(spec: PruneRunSpec) -> None:
    """Refuse a spec before anything is read.

    Raises:
        ValueError: with the field and what it must be.
    """
    if not spec.weights and not is_pretrained(spec.model.name):
        raise ValueError("name the trained weights: --weights file.safetensors")
    if sum(asked is not None for asked in (spec.density, spec.largest_loss, spec.target or None)) != 1:
        raise ValueError(
            "give either --density, the kept share, or --largest-loss, how much worse it may become, or --target"
        )
    if spec.target:
        parse_target(spec.target)
        if not spec.methods or not spec.shapes or spec.batch < 1:
            raise ValueError("a target needs at least one of --methods and of --shapes, and --batch of at least 1")
        for method in spec.methods:
            criterion(method)
    if spec.density is not None:
        check_density(spec.density)
    if spec.largest_loss is not None and not spec.largest_loss >= 0:
        raise ValueError(f"largest_loss must be at least 0, not {spec.largest_loss}")
    if not 0 < spec.validation < 1:
        raise ValueError(f"validation must be a share in (0, 1), not {spec.validation}")
    further.check(spec.prune, spec.train)
    if (spec.prune.after == "rewind") != bool(spec.early):
        raise ValueError("--prune.after rewind and --early, the weights to go back to, belong together")
    if spec.prune.schedule != "one-shot":
        raise ValueError("prune.schedule: one network is pruned in one shot; `nucleate compare` does iterative ladders")
    criterion(spec.prune.method)
    measure(spec.metric)


def measure(name: str) -> Callable[[Tensor, Tensor], float]:
    """accuracy, the share of points whose largest output is their label; loss, the mean cross-entropy; or the user's
    function of (outputs, labels).

    >>> measure("accuracy")(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    if name == "accuracy":
        return lambda outputs, labels: float((outputs.argmax(-1) == labels).double().mean())
    if name == "loss":
        return lambda outputs, labels: float(F.cross_entropy(outputs.flatten(0, -2), labels.flatten()))
    function = find_function(name)

    def number(outputs: Tensor, labels: Tensor) -> float:
        value = function(outputs, labels)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must give a number, not a {type(value).__name__}") from None

    return number


def covered(spec: PruneRunSpec, data_root: Path | None = None) -> str:
    """What of the spec's model is prunable and what not, with the reasons, as text.

    Raises:
        ValueError: for data, a model, weights or layers that cannot be used.
    """
    setting, _ = _loaded(spec, data_root, None)
    return str(coverage(setting.model, layers=spec.prune.layers or None))


class Search:
    """Tries densities, keeps what was found, writes the best."""

    def __init__(
        self, setting: Setting, spec: PruneRunSpec, writer: Writer, early: dict[str, Tensor] | None = None
    ) -> None:
        self.spec, self.writer, self.data, self.early = spec, writer, setting.data, early
        self.model = setting.model.to(spec.train.device)
        self.tuning = setting.training(writer).tuning
        self.start = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        order = torch.randperm(len(self.data.train_labels), generator=torch.Generator().manual_seed(spec.seed))
        held = max(1, round(spec.validation * len(order))) if spec.density is None else 0
        self.held, self.used = order[:held], order[held:]
        self.metric = measure(spec.metric)
        self.higher = spec.better == "higher" and spec.metric != "loss"
        self.loss = partial(loss_of, kind=spec.train.loss, num_classes=self.data.num_classes)

    def run(self, tick: Tick) -> None:
        """Search, or prune once; then measure on the held-out points and write everything."""
        spec = self.spec
        dense = self.judge(*self._test())
        reached: Mapping[Kind, float] = {}
        if spec.density is not None:
            best = self.at(spec.density)
            tick(1)
        elif spec.target:
            towards = Towards(self, parse_target(spec.target))
            best, reached = towards.run(tick), towards.reached
        else:
            best = self._search(tick)
        after = self.judge(*self._test())
        self._write(best, dense, after, reached)

    def _search(self, tick: Tick) -> Outcome:
        spec = self.spec
        assert spec.largest_loss is not None
        sign = 1.0 if self.higher else -1.0
        reference = self.judge(*self.held_points())
        low, high = LEAST, 1.0
        density, kept = (low * high) ** 0.5, 1.0
        walked: dict[float, float] = self._walked()
        for _ in range(STEPS):
            value = walked.get(density)
            if value is None:
                value = self.at(density).validation
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
        return self.at(kept)

    def at(
        self,
        density: float,
        *,
        method: str | None = None,
        shape: str | None = None,
        scope: Mapping[str, float] | None = None,
    ) -> Outcome:
        """Prune from the given weights as the spec says, or as asked here, and train on; the model is left so."""
        spec, how = self.spec, self.spec.prune
        self.model.load_state_dict(self.start)
        done = prune(
            self.model,
            criterion(method or how.method),
            density,
            batches=self.batches(),
            loss=self.loss,
            scope=scope or how.scope,
            shape=shape or how.shape,
            layers=how.layers or None,
            seed=spec.seed,
        )
        retrain(
            self.model,
            self.data.train_inputs[self.used],
            self.data.train_labels[self.used],
            self.data.num_classes,
            train=spec.train,
            how=how,
            tuning=self.tuning,
            seed=spec.seed,
            masks=done.masks,
            early=self.early,
        )
        value = self.judge(*self.held_points()) if len(self.held) else float("nan")
        return Outcome(density, value, done.masks, json.loads(json.dumps(done.record, default=str)))

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The training points that scores see."""
        index = self.used[: self.spec.prune.examples]
        device = self.spec.train.device
        inputs, labels = self.data.train_inputs[index], self.data.train_labels[index]
        pairs = zip(inputs.split(SCORE_BATCH), labels.split(SCORE_BATCH), strict=True)
        return [(x.to(device), y.to(device)) for x, y in pairs]

    @torch.no_grad()
    def mean_loss(self, inputs: Tensor, labels: Tensor) -> float:
        """Mean training loss of the model as it is, in eval mode."""
        total = 0.0
        with evaluating(self.model), tuned(self.tuning):
            points = points_at_once(self.model, labels)
            for x, y in zip(inputs.split(points), labels.split(points), strict=True):
                device = self.spec.train.device
                total += float(self.loss(self.model(x.to(device)).float(), y.to(device))) * len(y)
        return total / len(labels)

    def held_points(self) -> tuple[Tensor, Tensor]:
        """Validation points."""
        return self.data.train_inputs[self.held], self.data.train_labels[self.held]

    def _test(self) -> tuple[Tensor, Tensor]:
        return self.data.test_inputs, self.data.test_labels

    @torch.no_grad()
    def judge(self, inputs: Tensor, labels: Tensor) -> float:
        """The spec's measure of the model as it is, in eval mode."""
        with evaluating(self.model), tuned(self.tuning):
            parts = inputs.split(points_at_once(self.model, labels))
            outputs = torch.cat([self.model(x.to(self.spec.train.device)).float().cpu() for x in parts])
        return self.metric(outputs, labels)

    def _walked(self) -> dict[float, float]:
        self.writer.restore()
        return {r["density"]: r["value"] for r in self.writer.records if r["split"] == "validation"}

    def _note(self, density: float, value: float) -> None:
        self.writer.append([self.row(density, "validation", self.spec.metric, value)])
        self.writer.checkpoint(b"walked")

    def row(self, density: float, split: str, metric: str, value: float, layer: str = "") -> dict[str, Any]:
        """One record."""
        base = {"study": "prune", "seed": self.spec.seed, "step": 0, "epoch": 0, "density": density, "layer": layer}
        return {**base, "split": split, "metric": metric, "value": value}

    def _write(self, best: Outcome, dense: float, after: float, reached: Mapping[Kind, float]) -> None:
        masks, spec = best.masks, self.spec
        macs = layer_macs(self.model, self.data.train_inputs[:1].to(spec.train.device))
        cost = {"macs": (sum(macs.values()), remaining_macs(macs, masks.densities))}
        self.writer.append(
            [
                self.row(1.0, "test", spec.metric, dense),
                self.row(masks.density, "test", spec.metric, after),
                self.row(1.0, "", "macs", float(cost["macs"][0])),
                self.row(masks.density, "", "macs", cost["macs"][1]),
                *(self.row(masks.density, "", "density", v, layer) for layer, v in masks.densities.items()),
            ]
        )
        self.writer.save_tensors("weights", arrays(self.model))
        self.writer.save_tensors("masks", {name: mask.cpu().numpy() for name, mask in masks.items()})
        write_atomic(self.writer.path / "record.json", json.dumps(best.record, indent=1).encode())
        save_sparse(self.model, self.writer.path / "sparse.safetensors", masks, record=best.record)
        if is_pretrained(spec.model.name):
            self.model.save_pretrained(self.writer.path / "model")  # type: ignore[operator]
        found = replace(spec.prune, method=best.record["method"], shape=best.record["shape"])
        if spec.target:
            spec = replace(spec, prune=replace(found, scope="per layer, below"))
        card = card_text(spec, self.data, self.model, masks, dense, after, cost["macs"], reached)
        write_atomic(self.writer.path / "card.md", card.encode())


def _loaded(
    spec: PruneRunSpec, data_root: Path | None, threads: int | None
) -> tuple[Setting, dict[str, Tensor] | None]:
    """Data and network with the spec's weights, and the early weights to go back to."""
    setting = prepare(spec, data_root, threads)
    if spec.weights:
        load_weights(setting.model, spec.weights)
    return setting, _early(setting.model, spec.early) if spec.early else None


def _early(model: nn.Module, path: str) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    load_weights(twin, path)
    return twin.state_dict()


def _digests(spec: PruneRunSpec) -> str:
    """Of all files of weights that the run starts from."""
    files = [Path(p) for p in (spec.weights, spec.early) if p]
    if is_pretrained(spec.model.name):
        files += sorted(Path(spec.model.name).expanduser().glob("*.safetensors"))
    return "".join(_digest(path) for path in files)


def _digest(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read the weights {path}: {error.strerror or error}") from None
