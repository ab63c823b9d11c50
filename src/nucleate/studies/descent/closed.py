"""Models without a training loop: least squares on random features, and decision trees, the classical control."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nucleate.data.sources import generator
from nucleate.kernels.features import RandomFeatures, draw_features
from nucleate.kernels.least_squares import LeastSquares
from nucleate.runs import Record
from nucleate.spec import DescentSpec
from nucleate.studies.fits import Value, agreement, fit_values, loss_of
from nucleate.studies.points import Points

FAMILIES = ("relu-features", "fourier-features", "tree")
BLOCK = 4096
"""Test points whose features are held at a time."""

NONE = "none"
TUNED = "tuned ridge"


def cell_name(
    width: int, samples: int, noise: float, antidote: str, *, density: float = 1.0, arm: str = "ticket"
) -> str:
    """Key of a cell's predictions among the run's tensors.

    >>> cell_name(8, 100, 0.2, "none")
    'width 8, samples 100, noise 0.2, none'
    >>> cell_name(8, 100, 0.2, "none", density=0.1, arm="ticket")
    'width 8, samples 100, noise 0.2, none, density 0.1, ticket'
    """
    name = f"width {width}, samples {samples}, noise {noise:g}, {antidote}"
    return name if density == 1 else f"{name}, density {density:g}, {arm}"


class Closed:
    """All seeds of one family on the same points; `cell` fits them at one size."""

    def __init__(self, spec: DescentSpec, points: Points, widest: int) -> None:
        self.spec, self.points, self.widest = spec, points, widest
        self._drawn: dict[tuple[int, int], RandomFeatures] = {}
        self.predicted: dict[str, Any] = {}
        """Classes (seeds, N) that the last cell's models give the test points, by `cell_name`."""

    def cell(self, width: int, samples: int, noise: float) -> Iterator[Record]:
        """Rows of every seed at one width, sample size and noise, then of their agreement."""
        truth = self.points.data.test_labels
        outputs: dict[str, list[Tensor]] = {}
        where: dict[str, Any] = {"width": width, "samples": samples, "noise": noise}
        for seed in self.spec.seeds:
            given, held = self.points.labels(seed, noise)
            given = given[:samples]
            for antidote, (train, test), norm, count in self._fits(seed, width, given, held):
                values = fit_values(train, given, self.points.clean[:samples], test, truth, squared=True)
                outputs.setdefault(antidote, []).append(test)
                where |= {"antidote": antidote, "parameters": count}
                yield from self._rows(seed, [*values, ("", "norm", norm)], where)
            if self.spec.replace_one:
                moved = self._replaced(seed, width, given, held)
                value = float((moved.argmax(1) != outputs[NONE][-1].argmax(1)).double().mean())
                yield from self._rows(seed, [("test", "replace_one", value)], where | {"antidote": NONE})
        for antidote, found in outputs.items():
            where |= {"antidote": antidote}
            yield from self._rows(None, agreement(torch.stack(found), truth, squared=True), where)
        self.predicted = {
            cell_name(width, samples, noise, antidote): torch.stack(found).argmax(2).to(torch.uint8).numpy()
            for antidote, found in outputs.items()
        }

    def _rows(self, seed: int | None, values: list[Value], where: dict[str, Any]) -> Iterator[Record]:
        for split, metric, value in values:
            row = {"study": self.spec.study, "seed": seed, "step": 0, "epoch": 0, "layer": "", "split": split}
            yield row | {"metric": metric, "value": value} | where

    def _fits(
        self, seed: int, width: int, given: Tensor, held: Tensor
    ) -> Iterator[tuple[str, tuple[Tensor, Tensor], float, int]]:
        """Antidote, outputs on (train, test), norm of the solution, parameters."""
        if self.spec.model.name == "tree":
            yield NONE, self._tree(seed, width, given), math.nan, 2 * width - 1
            return
        x, classes = self.points.inputs[: len(given)], self.points.data.num_classes
        features = self._features(seed, len(given))
        f = features(x, width)
        fit = LeastSquares(f, F.one_hot(given, classes).double() - 1 / classes)
        ridges = (0.0, *self.spec.ridges)
        found = torch.stack([fit.coefficients(ridge) for ridge in ridges])
        train = f @ found
        test = self._outputs(features, self.points.data.test_inputs, width, found)
        names = [f"ridge {ridge:g}" if ridge else NONE for ridge in ridges]
        order = list(range(len(ridges)))
        if self.spec.ridges and len(held):
            outputs = self._outputs(features, self.points.held_inputs, width, found)
            losses = [loss_of(out, held, squared=True) for out in outputs]
            names.append(TUNED)
            order.append(losses.index(min(losses)))
        for name, i in zip(names, order, strict=True):
            yield name, (train[i], test[i]), float(found[i].norm()), width * classes

    def _replaced(self, seed: int, width: int, given: Tensor, held: Tensor) -> Tensor:
        """Test outputs of the least-norm fit in which a validation point takes the first training point's place."""
        classes = self.points.data.num_classes
        features = self._features(seed, len(given))
        x = torch.cat([self.points.held_inputs[:1], self.points.inputs[1 : len(given)]])
        labels = torch.cat([held[:1], given[1:]])
        a = LeastSquares(features(x, width), F.one_hot(labels, classes).double() - 1 / classes).coefficients()
        return self._outputs(features, self.points.data.test_inputs, width, a[None])[0]

    def _features(self, seed: int, samples: int) -> RandomFeatures:
        if (seed, samples) not in self._drawn:
            kind = cast(Literal["relu", "fourier"], self.spec.model.name.removesuffix("-features"))
            self._drawn[seed, samples] = draw_features(
                self.points.inputs[:samples], self.widest, kind=kind, generator=generator(seed, "random features")
            )
        return self._drawn[seed, samples]

    @staticmethod
    def _outputs(features: RandomFeatures, inputs: Tensor, width: int, found: Tensor) -> Tensor:
        """(R, N, C) outputs of R solutions (R, width, C)."""
        columns = found.transpose(0, 1).flatten(1)
        parts = [features(part, width) @ columns for part in inputs.split(BLOCK)]
        out: Tensor = torch.cat(parts).unflatten(1, (len(found), -1)).transpose(0, 1)
        return out

    def _tree(self, seed: int, leaves: int, given: Tensor) -> tuple[Tensor, Tensor]:
        from sklearn.tree import DecisionTreeClassifier

        tree = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=seed)
        tree.fit(self.points.inputs[: len(given)].flatten(1).numpy(), given.numpy())
        places = torch.from_numpy(tree.classes_)

        def outputs(x: Tensor) -> Tensor:
            out = torch.zeros(len(x), self.points.data.num_classes, dtype=torch.float64)
            out[:, places] = torch.from_numpy(tree.predict_proba(x.flatten(1).numpy()))
            return out - 1 / self.points.data.num_classes

        return outputs(self.points.inputs[: len(given)]), outputs(self.points.data.test_inputs)
