"""Neural collapse as a torchmetrics metric: additive float64 states that merge over processes and survive casts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from nucleate.geometry.collapse import Collapse, from_moments
from nucleate.geometry.conventions import Convention, convention_named
from nucleate.geometry.inputs import check_classifier, check_means
from nucleate.geometry.moments import Moments
from nucleate.geometry.projection import SUMS, Projection

LARGEST = 2048
"""second_moment="auto" keeps the d x d moment in float64 up to this dimension (32 MiB)."""


class NeuralCollapse(Metric):
    """NC1 to NC4 of features that stream past, in one pass.

    States are sums in float64, so ranks and shards merge exactly; casts of the metric or its owner leave them alone.
    What one pass cannot give is left out of `compute()`, and `reasons` says why.

    Args:
        num_classes: C.
        dim: d.
        classifier: an `nn.Linear` (read when computing, never moved or saved with the metric), or (weight, bias).
        means: (C, d) class means that judge the points, usually of the train set; NC4 and nearest-mean accuracy need
            them, and NC1 is then exact and about them.
        second_moment: keep the d x d second moment, which gives NC1 and VCI without means; "auto" up to d = 2048.
        convention: a name of `CONVENTIONS`, or a `Convention`.

    Raises:
        ValueError: for shapes that do not fit, an unknown convention, or means under a convention whose global mean is
            that of the points (their counts are not known here).

    >>> metric = NeuralCollapse(2, 1)
    >>> metric.update(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]))
    >>> out = metric.compute()
    >>> round(out["nc1"].item(), 6), "nc4" in out, metric.reasons["nc4"]
    (0.125, False, 'needs means=')
    """

    class_sum: Tensor
    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        classifier: nn.Linear | tuple[Tensor, Tensor | None] | None = None,
        means: Tensor | None = None,
        second_moment: bool | Literal["auto"] = "auto",
        convention: str | Convention = "papyan2020",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.dim = num_classes, dim
        self.convention_name, self.convention = convention_named(convention)
        self.second_moment = dim <= LARGEST if second_moment == "auto" else second_moment
        self.reasons: dict[str, str] = {}
        self._classifier = _Shared(classifier)
        check_classifier(*self._weights(), num_classes, dim)
        if means is not None:
            check_means(means, num_classes, dim)
            if self.convention.mu_g == "sample":
                raise ValueError(
                    f"convention {self.convention_name} weighs the global mean by points, which means= does not tell; "
                    "use collapse(..., means=), or a convention with the mean of class means"
                )
        self._means = None if means is None else means.detach().double().clone()
        self._projection: Projection | None = None
        for name, value in self._empty().sums().items():
            self.add_state(f"class_{name}", value, dist_reduce_fx="sum", persistent=True)
        if means is not None:
            for name in SUMS:
                zeros = torch.zeros(num_classes, dtype=torch.float64)
                self.add_state(f"point_{name}", zeros, dist_reduce_fx="sum", persistent=True)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add (N, d) features with (N,) labels, N of any size.

        Raises:
            ValueError: for wrong shapes and, on the CPU, for labels out of range, NaN or infinity.
        """
        self._moments().update(features, labels)
        if self._means is not None:
            if self._projection is None or self._projection.means.device != self.class_sum.device:
                self._projection = self._project()
            self._projection.adopt({name: getattr(self, f"point_{name}") for name in SUMS})
            self._projection.update(features, labels)

    def compute(self) -> dict[str, Tensor]:
        """Every defined measure by name, each a float64 scalar.

        Raises:
            ValueError: if no points were added, or labels out of range or NaN were met on a GPU.
        """
        result = self.result()
        values = {k: v for k, v in result.asdict().items() if not (math.isnan(v) or k in ("num_classes", "dim"))}
        return {k: torch.tensor(v, dtype=torch.float64, device=self.class_sum.device) for k, v in values.items()}

    def result(self) -> Collapse:
        """The same as a `Collapse`, with per-class values, chance levels and reasons (of this process's points)."""
        weight, bias = self._weights()
        projection = None
        if self._means is not None:
            projection = self._project()
            projection.adopt({name: getattr(self, f"point_{name}") for name in SUMS})
        out = from_moments(
            self._moments(),
            weight=weight,
            bias=bias,
            means=self._means,
            projection=projection,
            convention=self.convention,
        )
        self.reasons = dict(out.reasons)
        if self._means is None:
            needs = ("nc4", "ncc_accuracy", "nc4_ties", "boundary_mean", "boundary_spread")
            self.reasons |= dict.fromkeys(needs, "needs means=")
            if not self.second_moment:
                self.reasons["nc1"] = f"needs means=, or second_moment=True ({8 * self.dim**2 / 2**20:.0f} MiB)"
        return out

    def reset(self) -> None:
        """Forget all points; the classifier is read anew."""
        super().reset()
        self._projection = None

    def _moments(self) -> Moments:
        moments = self._empty(self.class_sum.device)
        moments.adopt({name: getattr(self, f"class_{name}") for name in moments.sums()})
        return moments

    def _empty(self, device: torch.device | None = None) -> Moments:
        return Moments(
            self.num_classes,
            self.dim,
            second_moment=self.second_moment,
            unit=self.convention.unit,
            device=device or "cpu",
        )

    def _project(self) -> Projection:
        weight, bias = self._weights()
        # Streaming points cannot be taken again, so nothing is left to a certificate.
        return Projection(
            self._moments(), weight=weight, bias=bias, means=self._means, convention=self.convention, precise=True
        )

    def _weights(self) -> tuple[Tensor | None, Tensor | None]:
        held = self._classifier.value
        if held is None:
            return None, None
        weight, bias = (held.weight, held.bias) if isinstance(held, nn.Linear) else held
        return weight.detach(), None if bias is None else bias.detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Self:
        def move_only(t: Tensor) -> Tensor:
            # `.to(torch.float32)` and `set_dtype` would cut the sums to float32: follow the device alone.
            return t.to(fn(t.new_empty(0)).device)

        self._projection = None
        super()._apply(move_only, exclude_state)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in self._defaults:
            # Loaded tensors belong to the caller; sums are updated in place.
            setattr(self, name, getattr(self, name).double().clone())
        self._computed = None
        self._update_count = max(self._update_count, int(self.class_sum.any()))


class _Shared:
    """Holds the classifier by reference: no submodule of the metric, and still the live one in a clone."""

    def __init__(self, value: nn.Linear | tuple[Tensor, Tensor | None] | None) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self
