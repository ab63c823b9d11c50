"""Class counts, sums and scatter in one pass: update, merge; safe in deep collapse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nucleate.geometry import native
from nucleate.geometry.inputs import block_rows, check_labels, check_pair, unit_rows


class Moments:
    """Additive float64 sums of every class: count n_c, sum of h, sum of |h|^2 and, on request, of h h^T.

    Float32 sums are wrong by an order of magnitude exactly where collapse happens; float64 sums of float32 features
    with within-class spread 1e-4 at offset 5 keep six digits of the variance. Cost O(N d), however many classes.

    Args:
        num_classes: C.
        dim: d.
        second_moment: also keep the (d, d) second moment, O(N d^2); needed for what one pass cannot give otherwise.
        unit: scale every feature to length one first (jiang2023).
        device: where the sums live; with the first features if none.

    >>> m = Moments(2, 1)
    >>> m.update(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> m.means.flatten().tolist(), m.within.tolist(), m.counts.tolist()
    ([1.0, 5.0], [1.0, 0.0], [2, 1])
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        second_moment: bool = False,
        unit: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if num_classes < 1 or dim < 1:
            raise ValueError(f"need at least one class and one dimension, not {num_classes} and {dim}")
        self.num_classes = num_classes
        self.dim = dim
        self.unit = unit
        self._follow = device is None
        self.count = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.sum = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self.sumsq = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device) if second_moment else None
        self.rejected = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add (N, d) features with their (N,) labels.

        On a GPU nothing is read back to the host, so bad labels and NaN are found when the moments are read.

        Raises:
            ValueError: for wrong shapes and, on the CPU, for labels out of range, NaN or infinity.
        """
        check_pair(features, labels)
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} dimensions, not {features.shape[1]}")
        if self._follow and features.device != self.count.device:
            self._to(features.device)
        features, labels = features.to(self.count.device), labels.to(self.count.device, torch.int64)
        on_host = labels.device.type == "cpu"
        if on_host:
            check_labels(labels, self.num_classes)
        else:
            bad = (labels < 0) | (labels >= self.num_classes)
            self.rejected += bad.sum()
            labels = labels.clamp(0, self.num_classes - 1)
        if self.outer is None and not self.unit and native.takes(features):
            native.class_sums(features, labels, self.sum, self.sumsq, self.count)
        else:
            self._add(features, labels)
        if on_host:
            self._check_finite()

    def _add(self, features: Tensor, labels: Tensor) -> None:
        for start in range(0, len(features), rows := block_rows(self.dim)):
            x = features[start : start + rows].double()
            y = labels[start : start + rows]
            if self.unit:
                x = unit_rows(x)
            self.sum.index_add_(0, y, x)
            self.sumsq.index_add_(0, y, torch.linalg.vector_norm(x, dim=1).square_())
            self.count.index_add_(0, y, torch.ones_like(y, dtype=torch.float64))
            if self.outer is not None:
                self.outer.addmm_(x.T, x)

    def merge(self, other: Moments) -> None:
        """Add the sums of another shard; the result is that of one pass over both.

        Raises:
            ValueError: if the two do not count the same thing.
        """
        if (self.num_classes, self.dim, self.unit) != (other.num_classes, other.dim, other.unit):
            raise ValueError(
                f"cannot merge moments of {other.num_classes} classes in {other.dim} dimensions (unit={other.unit}) "
                f"into {self.num_classes} in {self.dim} (unit={self.unit})"
            )
        if (self.outer is None) != (other.outer is None):
            raise ValueError(
                "cannot merge moments with and without a second moment; build both with the same second_moment="
            )
        for name, mine in self.sums().items():
            mine += other.sums()[name].to(mine.device)

    @property
    def counts(self) -> Tensor:
        """Points of each class, (C,) int64.

        Raises:
            ValueError: if labels out of range or NaN features were met.
        """
        self._check()
        return self.count.round().long()

    @property
    def means(self) -> Tensor:
        """Class means, (C, d) float64; a row of nan for a class without points.

        Raises:
            ValueError: if labels out of range or NaN features were met.
        """
        self._check()
        return self.sum / self.count[:, None]

    @property
    def within(self) -> Tensor:
        """Biased class variances v_c = (1/n_c) sum |h - mu_c|^2, (C,) float64, nan without points; never negative.

        Raises:
            ValueError: if labels out of range or NaN features were met.
        """
        return (self.sumsq / self.count - self.means.square().sum(1)).clamp_(min=0)

    @property
    def within_resolution(self) -> Tensor:
        """What rounding leaves of `within`, (C,): a smaller value is noise."""
        return 8 * torch.finfo(torch.float64).eps * self.sumsq / self.count

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the sums, by name."""
        return {name: value.clone() for name, value in self.sums().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the sums by those of `state_dict`.

        Raises:
            ValueError: if names or shapes do not fit.
        """
        mine = self.sums()
        if set(state) != set(mine):
            raise ValueError(f"expected the sums {sorted(mine)}, not {sorted(state)}")
        for name, value in mine.items():
            if state[name].shape != value.shape:
                raise ValueError(f"{name} must be {tuple(value.shape)}, not {tuple(state[name].shape)}")
        for name, value in mine.items():
            value.copy_(state[name])

    def sums(self) -> dict[str, Tensor]:
        """The additive states by name, not copied."""
        named = {"count": self.count, "sum": self.sum, "sumsq": self.sumsq, "rejected": self.rejected}
        return named if self.outer is None else {**named, "outer": self.outer}

    def adopt(self, sums: Mapping[str, Tensor]) -> None:
        """Count on in these tensors, in place: a metric's states, say."""
        for name in self.sums():
            setattr(self, name, sums[name])

    def _to(self, device: torch.device) -> None:
        for name, value in self.sums().items():
            setattr(self, name, value.to(device))

    def _check(self) -> None:
        if rejected := int(self.rejected):
            raise ValueError(f"{rejected} labels lie outside 0..{self.num_classes - 1}")
        self._check_finite()
        limits = torch.finfo(torch.float64)
        if float(self.sumsq.sum()) < limits.tiny / limits.eps and bool(self.sum.any()):
            raise ValueError("all features are so small that their squares leave float64; multiply them by a constant")

    def _check_finite(self) -> None:
        broken = ~torch.isfinite(self.sumsq)
        if bool(broken.any()):
            first = int(broken.nonzero()[0])
            if bool(torch.isfinite(self.sum[first]).all()):
                raise ValueError(
                    f"features of class {first} are so large that their squares leave float64; "
                    "divide all features by a constant"
                )
            raise ValueError(
                f"features of class {first} hold NaN or infinity; measure a checkpoint from before it diverged"
            )
