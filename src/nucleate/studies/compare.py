"""Pruning methods compared: one method, one seed, several densities, after Blalock et al. 2020.

The dense network of a seed is trained once and shared by all methods, so that they are compared on the same weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from nucleate.functions import find_function, is_function_name
from nucleate.geometry.moments import Moments
from nucleate.machine.tuning import Tuning
from nucleate.probes.macs import layer_macs, remaining_macs
from nucleate.probes.robustness import correct, pgd
from nucleate.pruning.coverage import coverage
from nucleate.pruning.masks import Masks
from nucleate.pruning.prune import Pruning, prune
from nucleate.pruning.reconstruct import reconstruct
from nucleate.pruning.scores import Criterion, find_score
from nucleate.pruning.select import check_density
from nucleate.runs import Record, Run, write_run
from nucleate.runs.store import Writer
from nucleate.runs.sweep import Tick
from nucleate.spec import CompareSpec, DenseSpec
from nucleate.studies import dense
from nucleate.studies import retrain as further
from nucleate.studies.pictures import weight_histograms
from nucleate.studies.retrain import retrain
from nucleate.studies.setting import Setting, prepare
from nucleate.studies.survivors import Value, filters, inputs_kept, sizes
from nucleate.studies.testing import Tested, chance_loss, evaluate, few
from nucleate.studies.timing import seconds, timed
from nucleate.training.loop import loss_of

DENSE = "dense"
"""The method that prunes nothing: the control with the same further training."""
REPAIR = "sparsegpt"
"""The method that changes the weights that stay, too."""
SCORE_BATCH = 64
PICTURED = 0.1
"""What is left is drawn at the largest density that is not above this, or at the last one."""

UNIT = "level"


def size(spec: CompareSpec) -> int:
    """Levels, the dense network included: what the progress bar counts."""
    return len(spec.densities) + 1


def parent(spec: CompareSpec) -> DenseSpec:
    """The dense training that a comparison starts from."""
    early = spec.train.epochs - spec.prune.epochs
    keep = (early,) if spec.prune.after == "rewind" and early else ()
    return DenseSpec(recipe=spec.recipe, seed=spec.seed, data=spec.data, model=spec.model, train=spec.train, keep=keep)


def run(
    spec: CompareSpec,
    *,
    root: Path,
    data_root: Path | None = None,
    threads: int | None = None,
    tick: Tick = lambda n: None,
) -> Run:
    """Prune the dense network of the spec's seed to each density, train on, and measure; level 0 is the dense network.

    Each record names method and density asked for, and "kept", the density that came of it. Level by level is stored,
    so a run that was stopped goes on with the next.

    Raises:
        ValueError: for a spec, data or a folder that cannot be used.
    """
    check(spec)
    setting = prepare(spec, data_root, threads)
    source = dense.run(parent(spec), root=root, data_root=data_root, threads=threads)
    with write_run(root, spec, env=setting.env, **setting.content) as writer:
        if writer.done:
            tick(size(spec))
            return Run(writer.path)
        begun = time.monotonic()
        Levels(setting, spec, writer, source).run(tick)
        writer.update_env(seconds=round(time.monotonic() - begun, 2))
        writer.finish()
        return Run(writer.path)


def check(spec: CompareSpec) -> None:
    """Refuse densities that are none, or do not fall.

    Raises:
        ValueError: with the field and what it must be.
    """
    if not spec.densities:
        raise ValueError("densities must name at least one kept share, as in --densities 0.5 0.2 0.1")
    for density in spec.densities:
        check_density(density)
    if list(spec.densities) != sorted(set(spec.densities), reverse=True):
        raise ValueError(f"densities must fall from one to the next, not {spec.densities}")
    further.check(spec.prune, spec.train)
    if spec.timing < 0:
        raise ValueError(f"timing must be a batch size, or 0 for none, not {spec.timing}")


def check_method(method: str) -> None:
    """Refuse a method that is no score before anything is trained.

    Raises:
        ValueError: with the nearest names.
    """
    if method not in (DENSE, REPAIR):
        criterion(method)


def criterion(method: str) -> str | Criterion:
    """A score's name, or the user's function that `package.module:function` names."""
    if is_function_name(method):
        return find_function(method)
    find_score(method)
    return method


class Levels:
    """The levels of one run."""

    def __init__(self, setting: Setting, spec: CompareSpec, writer: Writer, source: Run) -> None:
        self.setting, self.spec, self.writer, self.source = setting, spec, writer, source
        self.model, self.data = setting.model, setting.data
        self.tuning: Tuning = setting.training(writer).tuning
        self.initial = dense.weights(source, "initial")
        self.final = dense.weights(source, "final")
        self.early = self.initial
        if keep := parent(spec).keep:
            self.early = dense.weights(source, f"epoch-{keep[0]:06d}")
        self.macs = layer_macs(self.model, self.data.train_inputs[:1].to(spec.train.device))
        self.masks: Masks | None = None
        self.at_once: Tested | None = None

    def run(self, tick: Tick) -> None:
        """All levels that are not stored yet."""
        level = self._restore()
        tick(level)
        if level == 0:
            self.model.load_state_dict(self.final)
            self._store(0, 1.0, None, {})
            tick(1)
            level = 1
        for i in range(level, len(self.spec.densities) + 1):
            self._level(i, self.spec.densities[i - 1])
            tick(1)

    def _level(self, level: int, density: float) -> None:
        how = self.spec.prune
        if how.method == DENSE and how.schedule == "one-shot" and level > 1:
            # The same training of the same weights: it is there already.
            self._store(level, density, None, {})
            return
        if how.schedule == "one-shot" or level == 1:
            self.model.load_state_dict(self.final)
            self.masks = None
        before = {}
        if how.method != DENSE:
            inputs, labels = few(self.data, how.examples, self.spec.seed)
            device = self.spec.train.device
            batches = [
                (x.to(device), y.to(device))
                for x, y in zip(inputs.split(SCORE_BATCH), labels.split(SCORE_BATCH), strict=True)
            ]
            done = self._prune(density, batches)
            self.masks = done.masks
            self.writer.update_env(**{"pruned": done.record})
            self.at_once = self._evaluate()
            before = {"accuracy_before_training": self.at_once.values["test", "accuracy"]}
        self._train_on()
        self._store(level, density, self.masks, before)

    def _prune(self, density: float, batches: list[tuple[Tensor, Tensor]]) -> Pruning:
        how = self.spec.prune
        if how.method == REPAIR:
            layers = how.layers or None
            return reconstruct(self.model, batches, density, shape=how.shape, layers=layers, masks=self.masks)
        return prune(
            self.model,
            criterion(how.method),
            density,
            batches=batches,
            loss=partial(loss_of, kind=self.spec.train.loss, num_classes=self.data.num_classes),
            scope=how.scope,
            shape=how.shape,
            layers=how.layers or None,
            masks=self.masks,
            initial=self.initial,
            seed=self.spec.seed,
        )

    def _train_on(self) -> None:
        retrain(
            self.model,
            self.data.train_inputs,
            self.data.train_labels,
            self.data.num_classes,
            train=self.spec.train,
            how=self.spec.prune,
            tuning=self.tuning,
            seed=self.spec.seed,
            masks=self.masks,
            early=self.early,
        )

    def _evaluate(self) -> Tested:
        return evaluate(self.model, self.data, self.tuning, loss=self.spec.train.loss)

    def _store(self, level: int, density: float, masks: Masks | None, more: Mapping[str, float]) -> None:
        """Measure, write records and tensors, and mark the level as done."""
        # Where nothing is trained on, the network was asked already.
        tested = self._evaluate() if self.at_once is None or self.spec.prune.epochs else self.at_once
        densities = {} if masks is None else masks.densities
        parameters = sum(p.numel() for p in self.model.parameters())
        # float32 for every parameter that is left, and one bit for each that could have gone.
        size = 4 * parameters if masks is None else 4 * (parameters - masks.count + masks.kept) + masks.count / 8
        values: dict[tuple[str, str], float] = {
            **tested.values,
            **{("test", name): value for name, value in more.items()},
            ("", "macs"): remaining_macs(self.macs, densities),
            ("", "speedup_in_theory"): sum(self.macs.values()) / max(remaining_macs(self.macs, densities), 1.0),
            ("", "bytes"): float(size),
            ("", "compression"): 4 * parameters / size,
        }
        arrays = {"test_correct": tested.correct, **weight_histograms(self.model)}
        if level == 0:
            values["test", "chance_loss"] = chance_loss(self.data)
            arrays |= self._information()
        elif self.at_once is not None:
            arrays["correct_before_training"] = self.at_once.correct
        if self.spec.timing:
            values |= self._time(masks)
        if self.spec.robustness and self.data.train_inputs.is_floating_point():
            survived = self._attack()
            values["test", "pgd_accuracy"] = float(survived.mean())
            arrays["pgd_correct"] = survived
        if masks is not None:
            first = next(iter(masks.values()))
            arrays["first_layer_kept"] = first.flatten(1).sum(0).cpu().numpy().astype(np.int32)
        rows = [self._row(level, density, masks, "", s, m, v) for (s, m), v in values.items()]
        rows += [self._row(level, density, masks, name, "", "density", v) for name, v in densities.items()]
        rows += [self._row(level, density, masks, "", "", m, v) | at for m, at, v in self._pictures(level, masks)]
        self.writer.save_tensors(f"level-{level:02d}", arrays)
        self.writer.append(rows)
        self.writer.checkpoint(self._state(level + 1))

    def _pictures(self, level: int, masks: Masks | None) -> list[Value]:
        """Sizes of the weights before, and after at one density; there what is left of the first layer, too."""
        names = list(coverage(self.model, layers=self.spec.prune.layers or None).layouts)
        if level == 0:
            return sizes(self.model, self.initial, names, None)
        below = [i for i, d in enumerate(self.spec.densities, 1) if d <= PICTURED]
        if masks is None or level != (below[0] if below else len(self.spec.densities)):
            return []
        shape = tuple(self.data.train_inputs.shape[1:])
        left = [*inputs_kept(masks, shape), *filters(self.model, masks)]
        return [*left, *sizes(self.model, self.initial, names, masks)]

    def _time(self, masks: Masks | None) -> dict[tuple[str, str], float]:
        """Seconds a point of the fastest form of the pruned network and of the best dense one, measured in turns."""
        example = self.data.test_inputs[: self.spec.timing].to(self.spec.train.device)
        fast, best_dense = seconds(timed(self.model, example, masks, self.tuning))
        return {
            ("", "seconds"): fast / len(example),
            ("", "seconds_dense"): best_dense / len(example),
            ("", "speedup"): best_dense / fast,
        }

    def _information(self) -> dict[str, np.ndarray[Any, Any]]:
        """What each input value tells of the class: the share of its variance between the classes (eta squared)."""
        x = self.data.train_inputs
        if not x.is_floating_point():
            return {}
        moments = Moments(self.data.num_classes, x[0].numel())
        moments.update(x.flatten(1), self.data.train_labels)
        share = moments.counts.double() / moments.counts.sum()
        mean = share @ moments.means
        between = share @ (moments.means - mean).square()
        total = (x.flatten(1).double() - mean).square().mean(0)
        told = torch.where(total > 0, between / total.clamp_min(1e-300), 0.0)
        return {"input_information": told.numpy()}

    def _attack(self) -> np.ndarray[Any, Any]:
        count = min(self.spec.robustness, len(self.data.test_labels))
        x, y = (t[:count].to(self.spec.train.device) for t in (self.data.test_inputs, self.data.test_labels))
        low, high = self.data.input_range
        fooled = pgd(
            self.model,
            x,
            y,
            self.spec.epsilon * (high - low),
            bounds=(low, high),
            generator=torch.Generator().manual_seed(self.spec.seed),
        )
        return correct(self.model, fooled, y).cpu().numpy().astype(np.uint8)

    def _row(
        self, level: int, density: float, masks: Masks | None, layer: str, split: str, metric: str, value: float
    ) -> Record:
        how = self.spec.prune
        return {
            "study": self.spec.study,
            "seed": self.spec.seed,
            "step": 0,
            "epoch": level,
            "method": how.method,
            "density": density,
            "kept": 1.0 if masks is None else masks.density,
            "layer": layer,
            "split": split,
            "metric": metric,
            "value": value,
        }

    def _state(self, level: int) -> bytes:
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        tensors |= {f"mask.{k}": v.cpu().contiguous() for k, v in (self.masks or {}).items()}
        coupled = sorted(self.masks.coupled) if self.masks is not None else []
        return safetensors.torch.save(tensors, {"notes": json.dumps({"level": level, "coupled": coupled})})

    def _restore(self) -> int:
        """Load what the last level left; returns the level that comes next."""
        state = self.writer.restore()
        if state is None:
            return 0
        header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
        notes = json.loads(header["__metadata__"]["notes"])
        tensors = safetensors.torch.load(state)
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        masks = {k[5:]: v for k, v in tensors.items() if k.startswith("mask.")}
        self.masks = Masks(masks, coupled=frozenset(notes["coupled"])) if masks else None
        level: int = notes["level"]
        return level
