"""One look at a network in training: every measure as records, and what the report draws as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from nucleate.geometry.neighbours import neighbour_hit
from nucleate.geometry.simplex import nearest_etf, simplex_etf
from nucleate.geometry.softmax import vertex_distance
from nucleate.probes.calibration import expected_calibration_error
from nucleate.probes.corruptions import corruption_accuracy
from nucleate.probes.robustness import correct, fgsm, pgd, smallest_perturbation
from nucleate.probes.tap import evaluating
from nucleate.probes.weights import initial_scales, near_zero_share, weight_spectra, weights_gini
from nucleate.runs import Record
from nucleate.spec import CollapseSpec
from nucleate.training import Epoch

BATCH = 2048
BINS = 101
Arrays = dict[str, np.ndarray[Any, Any]]
Value = tuple[str, str, str, float]
"""Layer, split, metric, value."""


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
        with listening(model) as seen, torch.no_grad(), evaluating(model):
            model(data.train_inputs[:2].to(self.device))
            self.hidden = list(seen)
        self.layers = ["input", *self.hidden[:-1], "penultimate", "logits"]

    @torch.no_grad()
    def measure(self, epoch: Epoch, *, histograms: bool) -> tuple[list[Record], Arrays]:
        """Records and tensors of the network as it is now; its mode and gradients are left as they were."""
        with evaluating(self.model):
            values: list[Value] = []
            classifier = last_linear(self.model)
            weight, bias = classifier.weight, classifier.bias
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
            {**base, "layer": layer, "split": split, "metric": metric, "value": value}
            for layer, split, metric, value in values
        ]
        return rows, tensors

    def _batches(self, inputs: Tensor, labels: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
            yield self._features(x), y.to(self.device)

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        with listening(self.model) as seen:
            logits = self.model(x.to(self.device))
            features = {"input": x.to(self.device).flatten(1)}
            features |= {name: pooled(value) for name, value in seen.items()}
        features["penultimate"] = features.pop(self.hidden[-1])
        return features | {"logits": logits}

    def _pass(
        self, split: str, means: dict[str, Tensor] | None, weight: Tensor, bias: Tensor
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
        rows = [
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
        for name, h in features.items():
            rows.append((name, "test", "chi", neighbour_hit(h, labels, self.spec.measure.k)))
            if self.data.superclasses is not None:
                rows += self._peaks(name, h, labels)
            nearest.append((torch.cdist(h.double(), means[name].to(h.device)).argmin(1) == labels).cpu())
        logits = features["logits"].float()
        rows.append(("", "test", "ece", expected_calibration_error(logits.softmax(1), labels)))
        arrays = {"test_correct": logits.argmax(1) == labels, "ncc_correct": torch.stack(nearest)}
        return rows, {name: value.cpu().numpy().astype(np.uint8) for name, value in arrays.items()}

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
        cells = Cells()
        for x in self.data.train_inputs.split(BATCH):
            with listening(self.model) as seen:
                self.model(x.to(self.device))
            if any(h.ndim != 2 for h in seen.values()):
                return [], {}
            cells.update(list(seen.values()))
        return [("", "train", "pattern_share", cells.compute().own_share)], {}


def balanced(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of at most `size` points, as evenly over the classes as they allow, in a fixed random order."""
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.zeros(len(labels), dtype=torch.long)
    for c in labels.unique():
        members = (labels[order] == c).nonzero().flatten()
        rank[members] = torch.arange(len(members))
    return order[rank.argsort(stable=True)][:size].sort().values


def etf_coordinates(h: Tensor, means: Tensor, weight: Tensor) -> Arrays:
    """Points, means and weights in the frame whose vertices are a fixed unit simplex ETF; empty if d < C - 1.

    Lengths are in units of the nearest ETF's scale, the weights' in units of their own mean length.
    """
    classes, dim = means.shape
    if dim < classes - 1 or not torch.isfinite(means).all():
        return {}
    fit = nearest_etf(means)
    length = weight.norm(dim=1).mean().clamp_min(torch.finfo(torch.float64).tiny)
    found = {
        "etf_points": (h - fit.centre) @ fit.axes.T / fit.scale,
        "etf_means": (means - fit.centre) @ fit.axes.T / fit.scale,
        "etf_weights": weight @ fit.axes.T / length,
        "etf_vertices": simplex_etf(classes, dtype=torch.float64),
    }
    return {name: value.float().numpy() for name, value in found.items()}


def principal(h: Tensor, count: int = 50) -> np.ndarray[Any, Any]:
    """Top principal coordinates (n, min(d, 50)) of features, each axis signed so that its largest entry is positive."""
    x = h.double().cpu()
    x = x - x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    z = (u * s)[:, :count]
    sign = z.gather(0, z.abs().argmax(0, keepdim=True)).sign()
    coordinates: np.ndarray[Any, Any] = (z * torch.where(sign == 0, 1.0, sign)).float().numpy()
    return coordinates


def weight_histograms(model: nn.Module) -> Arrays:
    """Histogram (counts and edges) and singular values of every weight matrix and kernel."""
    arrays: Arrays = {}
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            w = p.detach().double().cpu().numpy().ravel()
            far = float(np.abs(w).max()) or 1.0
            counts, edges = np.histogram(w, bins=BINS, range=(-far, far))
            arrays |= {f"hist:{name}": counts, f"edges:{name}": edges}
    return arrays | {f"spectrum:{k}": s.singular_values.float().cpu().numpy() for k, s in weight_spectra(model).items()}


def last_linear(model: nn.Module) -> nn.Linear:
    """The classifier: the last linear map among the modules.

    Raises:
        ValueError: if there is none.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not found:
        raise ValueError("the model has no nn.Linear that could be its classifier")
    return found[-1]


def pooled(h: Tensor) -> Tensor:
    """(N, d) features: convolutional maps averaged over positions."""
    return h.mean((2, 3)) if h.ndim == 4 else h.flatten(1)


@contextmanager
def listening(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Outputs of the hidden blocks and the classifier's input, by name, as the model runs."""
    seen: dict[str, Tensor] = {}
    classifier = last_linear(model)
    hidden = getattr(model, "hidden", nn.Sequential())
    handles = [
        block.register_forward_hook(lambda m, args, out, name=f"hidden.{i}": seen.__setitem__(name, out.clone()))
        for i, block in enumerate(list(hidden.children())[:-1])
    ]
    handles.append(classifier.register_forward_pre_hook(lambda m, args: seen.__setitem__("classifier", args[0])))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
