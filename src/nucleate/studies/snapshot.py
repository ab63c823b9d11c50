"""One look at a network in training: every measure as records, and what the report draws as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.data import Dataset
from nucleate.geometry.cells import Cells
from nucleate.geometry.collapse import Moments, Projection, from_moments
from nucleate.geometry.density import density_peaks
from nucleate.geometry.dimension import participation, two_nn
from nucleate.geometry.neighbours import Neighbours, chi, layer_overlap, neighbour_search
from nucleate.geometry.softmax import vertex_distance
from nucleate.probes.calibration import expected_calibration_error
from nucleate.probes.corruptions import corruption_accuracy
from nucleate.probes.passes import places
from nucleate.probes.pooling import Pool, pooled
from nucleate.probes.resolve import ENDS, Trace
from nucleate.probes.robustness import correct, fgsm, pgd, smallest_perturbation
from nucleate.probes.tap import evaluating, listen
from nucleate.probes.weights import initial_scales, near_zero_share, weights_gini
from nucleate.runs import Record
from nucleate.spec import CollapseSpec
from nucleate.studies.pictures import Arrays, balanced, etf_coordinates, principal, weight_histograms
from nucleate.training import Epoch

BATCH = 2048
Value = tuple[str, str, str, float] | tuple[str, str, str, float, dict[str, Any]]
"""Layer, split, metric, value, and what more its record says."""
EXAMPLE = 8
"""Points of the pass in which the layers are found."""


class Snapshot:
    """Measures one model on one data set, epoch after epoch, always on the same points.

    To be made before the first step: the scale of the initial weights is part of what is measured.
    """

    def __init__(self, model: nn.Module, data: Dataset, spec: CollapseSpec) -> None:
        self.model, self.data, self.spec = model, data, spec
        self.device = torch.device(spec.train.device)
        generator = torch.Generator().manual_seed(0)
        self.picture = balanced(data.train_labels, spec.measure.picture, generator)
        self.held_out = balanced(data.test_labels, spec.measure.subsample, generator)
        self.scales = initial_scales(model)
        self.trace = Trace(model, data.train_inputs[:EXAMPLE].to(self.device))
        if self.trace.head() is None:
            raise ValueError("the model runs no nn.Linear that could be its classifier")
        chosen = spec.measure.layers
        found = self.trace.select(["input", *chosen, *ENDS[1:]], "auto") if chosen else self.trace.auto("auto")
        self.taps = {layer.tap: layer for layer in found}
        self.layers = [layer.name for layer in found]

    @torch.no_grad()
    def measure(self, epoch: Epoch, *, histograms: bool) -> tuple[list[Record], Arrays]:
        """Records and tensors of the network as it is now; its mode and gradients are left as they were."""
        with evaluating(self.model):
            values: list[Value] = []
            weight, bias = self.trace.head() or (None, None)
            assert weight is not None
            train, means = self._pass("train", None, weight, bias)
            test, _ = self._pass("test", means, weight, bias)
            values += train + test
            tensors = self._picture(means["penultimate"], weight)
            for measured, arrays in (self._held_out(means), self._attacks(), self._cells()):
                values += measured
                tensors |= arrays
        values += [
            ("", "", "near_zero_share", near_zero_share(self.model, self.scales)),
            ("", "", "gini", weights_gini(self.model, self.scales)),
        ]
        if histograms:
            tensors |= weight_histograms(self.model)
        base = {"study": self.spec.study, "seed": self.spec.seed, "step": epoch.step, "epoch": epoch.number}
        rows = [
            {**base, "layer": layer, "split": split, "metric": metric, "value": value, **(more[0] if more else {})}
            for layer, split, metric, value, *more in values
        ]
        return rows, tensors

    def _batches(self, inputs: Tensor, labels: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
            yield self._features(x), y.to(self.device)

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """(N, d) features of every layer, by name."""
        seen: dict[str, Tensor] = {}

        def receive(key: str, value: Tensor) -> None:
            if (layer := self.taps.get(key)) is not None:
                # A later in-place operation may write to what the hook was given.
                how: Pool = "flatten" if layer.name == "input" else "auto"
                seen[layer.name] = pooled(value, how).clone()

        with listen(self.model, places(self.taps), receive, lenient=True):
            self.model(x.to(self.device))
        return {name: seen[name] for name in self.layers}

    def _pass(
        self, split: str, means: dict[str, Tensor] | None, weight: Tensor, bias: Tensor | None
    ) -> tuple[list[Value], dict[str, Tensor]]:
        data = self.data
        inputs, labels = (
            (data.train_inputs, data.train_labels) if split == "train" else (data.test_inputs, data.test_labels)
        )
        moments: dict[str, Moments] = {}
        errors = loss = distance = norm = 0.0
        farthest = 0.0
        for features, y in self._batches(inputs, labels):
            for name, h in features.items():
                moments.setdefault(name, Moments(data.num_classes, h.shape[1])).update(h, y)
            z = features["logits"].float()
            far = vertex_distance(z.double().softmax(1), y)
            errors += float((z.argmax(1) != y).sum())
            loss += float(F.cross_entropy(z, y, reduction="sum"))
            distance += float(far.sum())
            farthest = max(farthest, float(far.max()))
            norm += float(z.norm(dim=1).sum())
        n = len(labels)
        own = {name: m.means for name, m in moments.items()}
        judge = means or own
        heads = {name: (weight, bias) if name == "penultimate" else (None, None) for name in moments}
        second = {
            name: Projection(
                m, weight=heads[name][0], bias=heads[name][1], means=None if means is None else judge[name]
            )
            for name, m in moments.items()
        }
        for features, y in self._batches(inputs, labels):
            for name, h in features.items():
                second[name].update(h, y)
        rows: list[Value] = [
            ("", split, "error", errors / n),
            ("", split, "accuracy", 1 - errors / n),
            ("", split, "loss", loss / n),
            ("", split, "vertex_distance_mean", distance / n),
            ("", split, "vertex_distance_max", farthest),
            ("", split, "logit_norm", norm / n),
        ]
        for name, m in moments.items():
            w, b = heads[name]
            result = from_moments(
                m, weight=w, bias=b, means=None if means is None else judge[name], projection=second[name]
            )
            rows += [(name, split, k, v) for k, v in result.asdict().items() if k not in ("num_classes", "dim")]
            if name == "logits":
                rows.append(("", split, "logit_ratio", result.nc1_quotient))
        return rows, judge

    def _picture(self, means: Tensor, weight: Tensor) -> Arrays:
        inputs, labels = self.data.train_inputs[self.picture], self.data.train_labels[self.picture]
        features = self._features(inputs)
        logits = features["logits"].float().cpu()
        arrays: Arrays = {
            "labels": labels.numpy(),
            "logits": logits.numpy(),
            "probs": logits.softmax(1).numpy(),
        }
        for name, h in features.items():
            if name != "logits":
                arrays[f"pca:{name}"] = principal(h)
        z = logits.double()
        w = (weight - weight.mean(0)).double().cpu()
        h = features["penultimate"].double().cpu()
        arrays |= etf_coordinates(h, means.double().cpu(), w)
        rows = torch.arange(len(labels))
        bias = z - h @ weight.double().cpu().T
        margin = (h @ w.T + bias - bias.mean(1, keepdim=True))[rows, labels] / w.norm(dim=1)[labels]
        arrays["boundary"] = margin.float().numpy()
        return arrays

    def _held_out(self, means: dict[str, Tensor]) -> tuple[list[Value], Arrays]:
        """Neighbours, nearest centres and calibration on the fixed held-out points."""
        inputs, labels = self.data.test_inputs[self.held_out], self.data.test_labels[self.held_out].to(self.device)
        parts = [self._features(x) for x in inputs.split(BATCH)]
        features = {name: torch.cat([part[name] for part in parts]) for name in self.layers}
        rows: list[Value] = []
        nearest = []
        k = min(self.spec.measure.k, len(labels) - 1)
        before: tuple[str, Neighbours] | None = None
        for name, h in features.items():
            found = neighbour_search(h, k)
            hit = chi(h, labels, k, found=found)
            told = {"k": k, "low": hit.low, "high": hit.high, "chance": hit.chance, "tied": hit.tied}
            rows.append((name, "test", "chi", hit.value, told))
            rows += self._dimensions(name, h, found)
            if before is not None:
                shared = layer_overlap(before[1], found)
                told = {"k": k, "low": shared.low, "high": shared.high, "chance": shared.chance, "tied": shared.tied}
                rows.append((before[0], "test", "overlap_next", shared.value, told))
            before = name, found
            if self.data.superclasses is not None:
                rows += self._peaks(name, h, labels)
            nearest.append((torch.cdist(h.double(), means[name].to(h.device)).argmin(1) == labels).cpu())
        logits = features["logits"].float()
        rows.append(("", "test", "ece", expected_calibration_error(logits.softmax(1), labels)))
        arrays = {"test_correct": logits.argmax(1) == labels, "ncc_correct": torch.stack(nearest)}
        return rows, {name: value.cpu().numpy().astype(np.uint8) for name, value in arrays.items()}

    @staticmethod
    def _dimensions(layer: str, h: Tensor, found: Neighbours) -> list[Value]:
        """Two-NN dimension, with two standard errors, and participation ratio; what is not defined says why."""
        p = participation(h)
        out: list[Value] = [(layer, "test", "participation_ratio", p.value, {"chance": p.chance, **_why(p.reason)})]
        if found.indices.shape[1] >= 2:
            d = two_nn(h, found=found)
            told = {"low": d.value - 2 * d.stderr, "high": d.value + 2 * d.stderr, **_why(d.reason)}
            out.append((layer, "test", "intrinsic_dimension", d.value, told))
        return out

    def _peaks(self, layer: str, h: Tensor, labels: Tensor) -> list[Value]:
        """Agreement of the density peaks with coarse groups and with classes (adjusted Rand index)."""
        try:
            found = density_peaks(h).labels.cpu()
        except ValueError:
            # Points that all coincide have no density; the measure is absent for this layer.
            return []
        coarse = self.data.coarse(labels).cpu()
        return [
            (layer, "test", "ari_coarse", float(adjusted_rand_score(coarse, found))),
            (layer, "test", "ari_fine", float(adjusted_rand_score(labels.cpu(), found))),
        ]

    def _attacks(self) -> tuple[list[Value], Arrays]:
        """FGSM, PGD, the smallest perturbation and corruptions; radii in units of the inputs' full range."""
        count = self.spec.measure.robustness
        if not count:
            return [], {}
        index = self.held_out[: min(count, len(self.held_out))]
        x, y = self.data.test_inputs[index].to(self.device), self.data.test_labels[index].to(self.device)
        low, high = self.data.input_range
        radius = self.spec.measure.epsilon * (high - low)
        generator = torch.Generator().manual_seed(self.spec.seed)
        fooled = pgd(self.model, x, y, radius, bounds=(low, high), generator=generator)
        survived = correct(self.model, fooled, y)
        one_step = correct(self.model, fgsm(self.model, x, y, radius, bounds=(low, high)), y)
        far = smallest_perturbation(self.model, x, y, largest=high - low, bounds=(low, high)) / (high - low)
        rows: list[Value] = [
            ("", "test", "pgd_accuracy", float(survived.double().mean())),
            ("", "test", "fgsm_accuracy", float(one_step.double().mean())),
            ("", "test", "min_perturbation", float(far.double().mean())),
            ("", "test", "corruption_accuracy", corruption_accuracy(self.model, x, y, bounds=(low, high)).mean),
        ]
        return rows, {"pgd_correct": survived.cpu().numpy().astype(np.uint8), "min_perturbation": far.cpu().numpy()}

    def _cells(self) -> tuple[list[Value], Arrays]:
        """Share of training points whose ReLU activation pattern no other point has; for networks of vectors."""
        hidden = [layer for layer in self.taps.values() if layer.name not in ("input", "logits")]
        if any(layer.pool for layer in hidden):
            return [], {}
        cells = Cells()
        for x in self.data.train_inputs.split(BATCH):
            features = self._features(x)
            cells.update([features[layer.name] for layer in hidden])
        return [("", "train", "pattern_share", cells.compute().own_share)], {}


def _why(reason: str | None) -> dict[str, str]:
    return {"reason": reason} if reason else {}
