"""One look at a network in training: every measure as records, and what the report draws as tensors.

A full look takes every point and every measure. A light one takes `measure.light_size` points of each split and leaves
out what is dear (attacks, corruptions, neighbours, activation cells, histograms) or depends on the number of points
(calibration error, farthest point).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.data import Dataset
from nucleate.geometry.cells import Cells
from nucleate.geometry.collapse import Collapse, Moments, Projection, from_moments
from nucleate.geometry.conventions import convention_named
from nucleate.geometry.inputs import unit_rows
from nucleate.geometry.neighbours import Neighbours, neighbour_search
from nucleate.machine.batches import points_at_once
from nucleate.probes.outputs import Outputs
from nucleate.probes.passes import places
from nucleate.probes.pooling import pooled
from nucleate.probes.resolve import ENDS, Trace
from nucleate.probes.tap import evaluating, listen
from nucleate.probes.weights import initial_scales, near_zero_share, weights_gini
from nucleate.runs import Record
from nucleate.spec import CollapseSpec
from nucleate.studies.held_out import Value, attacks, neighbourhoods
from nucleate.studies.input_layer import InputLayer
from nucleate.studies.pictures import Arrays, balanced, etf_coordinates, principal, weight_histograms
from nucleate.training import Epoch

EXAMPLE = 8
"""Points of the pass in which the layers are found."""
KEPT_BYTES = 256 << 20
"""Features kept from the first pass over the points; the network runs again on those that are not."""
OF_ALL_POINTS = ("ece", "vertex_distance_max")
"""Measures of the outputs that fewer points would shift."""
INPUT = ENDS[0]
Features = dict[str, Tensor]


class Snapshot:
    """Measures one model on one data set, epoch after epoch, always on the same points.

    To be made before the first step: the scale of the initial weights is part of what is measured.

    Raises:
        ValueError: if the model does not end in a classifier, for an unknown convention, or if light measures are asked
            of fewer points than there are classes.
    """

    def __init__(self, model: nn.Module, data: Dataset, spec: CollapseSpec) -> None:
        self.model, self.data, self.spec = model, data, spec
        self.device = torch.device(spec.train.device)
        generator = torch.Generator().manual_seed(0)
        self.picture = balanced(data.train_labels, spec.measure.picture, generator)
        self.held_out = balanced(data.test_labels, spec.measure.subsample, generator)
        self.points = {
            "train": (data.train_inputs, data.train_labels),
            "test": (data.test_inputs, data.test_labels),
        }
        size = spec.measure.light_size
        if size < data.num_classes:
            raise ValueError(f"measure.light_size must be at least the {data.num_classes} classes, not {size}")
        self.light = {
            split: (x, y) if len(y) <= size else (x[few := balanced(y, size, generator)], y[few])
            for split, (x, y) in self.points.items()
        }
        self.convention, rule = convention_named(spec.measure.convention)
        self.unit = rule.unit
        self.scales = initial_scales(model)
        self.trace = Trace(model, data.train_inputs[:EXAMPLE].to(self.device))
        head = self.trace.head()
        if head is None:
            raise ValueError("the model runs no nn.Linear that could be its classifier")
        if len(head[0]) != data.num_classes:
            raise ValueError(
                f"the last nn.Linear that runs, {self.trace.classifier!r}, gives {len(head[0])} values, not one for "
                f"each of the {data.num_classes} classes; end the network in an nn.Linear"
            )
        chosen = spec.measure.layers
        found = self.trace.select(["input", *chosen, *ENDS[1:]], "auto") if chosen else self.trace.auto("auto")
        self.layers = [layer.name for layer in found]
        self.taps = {layer.tap: layer for layer in found if layer.name != INPUT}
        self.inputs = (
            InputLayer(data, self.device, self.picture, self.held_out, self.convention)
            if INPUT in self.layers
            else None
        )

    @torch.no_grad()
    def measure(self, epoch: Epoch, *, full: bool) -> tuple[list[Record], Arrays]:
        """Records and tensors of the network as it is now; its mode and gradients are left as they were."""
        values: list[Value] = []
        with evaluating(self.model):
            head = self.trace.head()
            assert head is not None
            points = self.points if full else self.light
            train, means = self._pass("train", *points["train"], None, head, cells=full)
            test, _ = self._pass("test", *points["test"], means, head)
            values += train + test
            tensors = self._picture(means["penultimate"], head[0])
            if full:
                for measured, arrays in (self._held_out(means), self._attacks()):
                    values += measured
                    tensors |= arrays
        values += [
            ("", "", "near_zero_share", near_zero_share(self.model, self.scales)),
            ("", "", "gini", weights_gini(self.model, self.scales)),
        ]
        if full:
            tensors |= weight_histograms(self.model)
        base = {"study": self.spec.study, "seed": self.spec.seed, "step": epoch.step, "epoch": epoch.number}
        rows = [
            {**base, "layer": layer, "split": split, "metric": metric, "value": value, **(more[0] if more else {})}
            for layer, split, metric, value, *more in values
        ]
        return rows, tensors

    def _features(self, x: Tensor) -> Features:
        """(N, d) features of every layer after the input, by name."""
        seen: Features = {}

        def receive(key: str, value: Tensor) -> None:
            if (layer := self.taps.get(key)) is not None:
                # A later in-place operation may write to what the hook was given.
                seen[layer.name] = pooled(value).clone()

        with listen(self.model, places(self.taps), receive, lenient=True):
            self.model(x.to(self.device))
        return {name: seen[name] for name in self.layers if name != INPUT}

    def _pass(
        self,
        split: str,
        inputs: Tensor,
        labels: Tensor,
        means: Features | None,
        head: tuple[Tensor, Tensor | None],
        *,
        cells: bool = False,
    ) -> tuple[list[Value], Features]:
        """Outputs and collapse of every layer on some points, judged by `means` if given; their own means.

        As in `collapse`, products are float32 first and float64 where that is not certified.
        """
        classes = self.data.num_classes
        moments: dict[str, Moments] = {}
        outputs, patterns, kept, room = Outputs(classes), Cells(), [], KEPT_BYTES
        hidden = [layer for layer in self.taps.values() if layer.name != "logits"]
        # Units that are averaged over places have no pattern.
        cells = cells and not any(layer.pool for layer in hidden)
        points = points_at_once(self.model)
        batches = list(zip(inputs.split(points), labels.to(self.device).split(points), strict=True))
        for x, y in batches:
            features = self._features(x)
            for name, h in features.items():
                moments.setdefault(name, Moments(classes, h.shape[1], unit=self.unit)).update(h, y)
            outputs.update(features["logits"].float(), y)
            if cells:
                patterns.update([features[layer.name] for layer in hidden])
            room -= sum(h.numel() * h.element_size() for h in features.values())
            if room >= 0:
                kept.append(features)
        judges = means or {}
        heads = {name: head if name == "penultimate" else (None, None) for name in moments}
        projections: dict[str, Projection] = {}
        uncertain = list(moments)
        for precise in (False, True):
            for name in uncertain:
                weight, bias = heads[name]
                projections[name] = Projection(
                    moments[name],
                    weight=weight,
                    bias=bias,
                    means=judges.get(name),
                    convention=self.convention,
                    precise=precise,
                )
            for number, (x, y) in enumerate(batches if uncertain else []):
                features = kept[number] if number < len(kept) else self._features(x)
                for name in uncertain:
                    projections[name].update(features[name], y)
            uncertain = [name for name in uncertain if not projections[name].certified]
        few = len(labels) < len(self.points[split][1])
        rows: list[Value] = [
            ("", split, metric, value)
            for metric, value in outputs.values().items()
            if not (few and metric in OF_ALL_POINTS)
        ]
        if cells:
            rows.append(("", split, "pattern_share", patterns.compute().own_share))
        if self.inputs is not None:
            rows += _collapse(INPUT, split, self.inputs.collapse(split))
        for name, m in moments.items():
            w, b = heads[name]
            result = from_moments(
                m,
                weight=w,
                bias=b,
                means=judges.get(name),
                projection=projections[name],
                convention=self.convention,
            )
            rows += _collapse(name, split, result)
            if name == "logits":
                rows.append(("", split, "logit_ratio", result.nc1_quotient))
        return rows, {name: m.means for name, m in moments.items()}

    def _picture(self, means: Tensor, weight: Tensor) -> Arrays:
        inputs, labels = self.data.train_inputs[self.picture], self.data.train_labels[self.picture]
        features = self._features(inputs)
        logits = features["logits"].float().cpu()
        arrays: Arrays = {
            "labels": labels.numpy(),
            "logits": logits.numpy(),
            "probs": logits.softmax(1).numpy(),
        }
        if self.inputs is not None:
            arrays[f"pca:{INPUT}"] = self.inputs.coordinates()
        arrays |= {f"pca:{name}": principal(h) for name, h in features.items() if name != "logits"}
        z = logits.double()
        w = (weight - weight.mean(0)).double().cpu()
        h = features["penultimate"].double().cpu()
        arrays |= etf_coordinates(self._rows(h), means.double().cpu(), w)
        rows = torch.arange(len(labels))
        bias = z - h @ weight.double().cpu().T
        margin = (h @ w.T + bias - bias.mean(1, keepdim=True))[rows, labels] / w.norm(dim=1)[labels]
        arrays["boundary"] = margin.float().numpy()
        return arrays

    def _rows(self, h: Tensor) -> Tensor:
        """Features as the convention takes them, float64."""
        return unit_rows(h.double()) if self.unit else h.double()

    def _held_out(self, means: Features) -> tuple[list[Value], Arrays]:
        """Neighbours and nearest centres on the fixed held-out points."""
        inputs, labels = self.data.test_inputs[self.held_out], self.data.test_labels[self.held_out].to(self.device)
        parts = [self._features(x) for x in inputs.split(points_at_once(self.model))]
        features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        right = features["logits"].argmax(1) == labels
        if self.inputs is not None:
            features = {INPUT: self.inputs.held_out, **features}
            means = {INPUT: self.inputs.moments("train").means, **means}

        def search(layer: str, h: Tensor, k: int) -> Neighbours:
            own = self.inputs if layer == INPUT else None
            return neighbour_search(h, k) if own is None else own.neighbours(k)

        coarse = None if self.data.superclasses is None else self.data.coarse(labels)
        rows = neighbourhoods(features, labels, self.spec.measure.k, search, coarse)
        nearest = [_nearest(self._rows(h), means[name].to(h.device)) == labels for name, h in features.items()]
        arrays = {"test_correct": right, "ncc_correct": torch.stack(nearest)}
        return rows, {name: value.cpu().numpy().astype(np.uint8) for name, value in arrays.items()}

    def _attacks(self) -> tuple[list[Value], Arrays]:
        measure = self.spec.measure
        if not measure.robustness:
            return [], {}
        index = self.held_out[: measure.robustness]
        x, y = self.data.test_inputs[index].to(self.device), self.data.test_labels[index].to(self.device)
        return attacks(self.model, x, y, measure, self.data.input_range, self.spec.seed)


def _nearest(h: Tensor, means: Tensor) -> Tensor:
    """Index (N,) of the nearest mean; a class without points has none, a row of nan."""
    return torch.cdist(h, means).nan_to_num(nan=torch.inf).argmin(1)


def _collapse(layer: str, split: str, found: Collapse) -> list[Value]:
    return [(layer, split, key, value) for key, value in found.asdict().items() if key not in ("num_classes", "dim")]
