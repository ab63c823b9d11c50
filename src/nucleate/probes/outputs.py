"""Measures of a network's outputs that stream past: accuracy, loss, calibration, distance from the vertices."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nucleate.geometry.softmax import vertex_distance
from nucleate.probes.calibration import calibration_gaps

NAMES = ("accuracy", "error", "loss", "ece", "vertex_distance_mean", "vertex_distance_max", "logit_norm")


class Outputs:
    """Sums over points of what logits say, in float64; nothing is kept of the points.

    accuracy, error: share of points whose largest logit is, or is not, the label's. loss: mean cross-entropy. ece:
    `expected_calibration_error`. vertex_distance_mean, _max: |softmax - e_y|. logit_norm: mean |z|.

    >>> out = Outputs(2)
    >>> out.update(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 1]))
    >>> round(out.values()["loss"], 3), out.values()["accuracy"]
    (0.347, 1.0)
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.points = 0
        self.reason = ""
        self._sums: Tensor | None = None
        self._gaps: Tensor | None = None
        self._farthest: Tensor | None = None

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add (N, C) logits with (N,) labels; other shapes leave every value nan, with a reason."""
        self.points += len(labels)
        shape = tuple(logits.shape)
        if logits.ndim != 2 or len(logits) != len(labels) or shape[1] < self.num_classes:
            self.reason = f"the model gives {shape} for {len(labels)} points of {self.num_classes} classes"
            return
        z = logits.double()
        p = z.softmax(1)
        far = vertex_distance(p, labels)
        right = (z.argmax(1) == labels).double().sum()
        parts = [right, F.cross_entropy(z, labels, reduction="sum"), far.sum(), z.norm(dim=1).sum()]
        sums, gaps = torch.stack(parts), calibration_gaps(p, labels)
        if self._sums is None or self._gaps is None or self._farthest is None:
            self._sums, self._gaps, self._farthest = sums, gaps, far.max()
        else:
            self._sums, self._gaps = self._sums + sums, self._gaps + gaps
            self._farthest = torch.maximum(self._farthest, far.max())

    def values(self) -> dict[str, float]:
        """Every measure by name; nan if the outputs did not fit, which `reason` explains."""
        if self.reason or self._sums is None or self._gaps is None or self._farthest is None:
            return dict.fromkeys(NAMES, math.nan)
        n = self.points
        right, loss, far, norm = self._sums.tolist()
        ece = float(self._gaps.abs().sum() / n)
        return dict(
            zip(
                NAMES,
                (right / n, (n - right) / n, loss / n, ece, far / n, float(self._farthest), norm / n),
                strict=True,
            )
        )
