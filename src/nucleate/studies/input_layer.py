"""The input as a layer: what is measured of it never changes along a training, so it is measured once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nucleate.data import Dataset
from nucleate.geometry.collapse import Collapse, Moments, Projection, from_moments
from nucleate.geometry.conventions import convention_named
from nucleate.geometry.neighbours import Neighbours, neighbour_search
from nucleate.probes.pooling import pooled
from nucleate.studies.pictures import principal

BATCH = 2048


class InputLayer:
    """Inputs as vectors (N, d), on the training's device.

    Args:
        data: whose inputs.
        device: where they are measured.
        picture: training points that the report draws.
        held_out: held-out points whose neighbours are looked for.
        convention: of the collapse measures, by name.
    """

    def __init__(self, data: Dataset, device: torch.device, picture: Tensor, held_out: Tensor, convention: str) -> None:
        self.data, self.device, self.convention = data, device, convention
        self.held_out = self.vectors(data.test_inputs[held_out])
        self.moments: Callable[[str], Moments] = cache(self._moments)
        self.collapse: Callable[[str], Collapse] = cache(self._collapse)
        """Of all points of a split, the held-out ones judged by the means of the training points."""
        self.neighbours: Callable[[int], Neighbours] = cache(lambda k: neighbour_search(self.held_out, k))
        self.coordinates: Callable[[], np.ndarray[Any, Any]] = cache(
            lambda: principal(self.vectors(data.train_inputs[picture]))
        )

    def vectors(self, inputs: Tensor) -> Tensor:
        """(N, d) values of inputs (N, ...), in a row."""
        return pooled(inputs.to(self.device), "flatten")

    def _batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        data = self.data
        inputs, labels = (
            (data.train_inputs, data.train_labels) if split == "train" else (data.test_inputs, data.test_labels)
        )
        return zip(map(self.vectors, inputs.split(BATCH)), labels.to(self.device).split(BATCH), strict=True)

    def _moments(self, split: str) -> Moments:
        unit = convention_named(self.convention)[1].unit
        moments = Moments(self.data.num_classes, self.vectors(self.data.train_inputs[:1]).shape[1], unit=unit)
        for h, labels in self._batches(split):
            moments.update(h, labels)
        return moments

    def _collapse(self, split: str) -> Collapse:
        moments, means = self.moments(split), None if split == "train" else self.moments("train").means
        projection = Projection(moments, means=means, convention=self.convention)
        for h, labels in self._batches(split):
            projection.update(h, labels)
        return from_moments(moments, means=means, projection=projection, convention=self.convention)
