"""The same points for every model of a study, and labels that are wrong by seed alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nucleate.data import Dataset, load
from nucleate.data.noise import flip_labels
from nucleate.data.sources import generator
from nucleate.spec import DataSpec


@dataclass(frozen=True)
class Points:
    """Training points in a fixed order, the first n of which are the sample of size n; validation and test points."""

    data: Dataset
    """As loaded, labels clean."""
    spec: DataSpec
    inputs: Tensor
    clean: Tensor
    held_inputs: Tensor
    held_clean: Tensor

    def labels(self, seed: int, noise: float) -> tuple[Tensor, Tensor]:
        """Labels as given of the training and of the validation points: their noise depends on the seed alone.

        A larger noise does not touch fewer points, and a smaller sample has the labels of the larger one's first part.
        """
        return tuple(
            flip_labels(
                clean,
                noise,
                num_classes=self.data.num_classes,
                generator=generator(seed, f"label noise, {part}"),
                kind=self.spec.noise_kind,
            )
            for part, clean in (("train", self.clean), ("validation", self.held_clean))
        )  # type: ignore[return-value]


def take(spec: DataSpec, root: Path | None, *, size: int | None, validation: int) -> Points:
    """Load `size` training points (all that are left if none) and `validation` others, in an order drawn once.

    Raises:
        ValueError: for more points than there are, or data that cannot be used.
    """
    if validation < 0:
        raise ValueError(f"validation is a number of points, at least 0, not {validation}")
    whole = replace(spec, label_noise=0.0, train_size=None if size is None else size + validation)
    data = load(whole, root)
    order = torch.randperm(len(data.train_labels), generator=generator(spec.seed, "order of the sample"))
    kept, held = order[: len(order) - validation], order[len(order) - validation :]
    if not len(kept):
        raise ValueError(f"validation takes {validation} of {len(order)} points and leaves none to train on")
    x, y = data.train_inputs, data.train_labels
    return Points(data, spec, x[kept], y[kept], x[held], y[held])
