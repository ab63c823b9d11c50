"""Neural collapse, NC1 to NC4, by named convention."""

from __future__ import annotations

import torch
from torch import Tensor

from nucleate.geometry.conventions import Convention, convention_named
from nucleate.geometry.inputs import check_classifier, check_labels, check_pair
from nucleate.geometry.measurement import Measurement
from nucleate.geometry.moments import Moments
from nucleate.geometry.projection import Projection
from nucleate.geometry.result import Collapse

__all__ = ["Collapse", "Moments", "Projection", "collapse", "from_moments"]

CHEAP = 4e9
"""Multiply-adds that a second moment may cost before it has to be asked for."""


@torch.no_grad()
def collapse(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    means: Tensor | None = None,
    convention: str | Convention = "papyan2020",
    second_moment: bool | None = None,
) -> Collapse:
    """Measure the collapse of features into their class means, and of the classifier onto them.

    Two passes over the features in blocks; float32 features, float64 sums; exact in deep collapse and at an offset.

    Args:
        features: (N, d).
        labels: (N,) integers 0 .. C - 1.
        num_classes: C; the largest label plus one if none.
        weight, bias: the classifier (C, d), (C,) that receives these features.
        means: (C, d) class means that judge the features (train means for test points); their own if none.
        convention: a name of `CONVENTIONS`, or a `Convention`.
        second_moment: also take the d x d second moment, which nc1_vci needs; where it is cheap, if none.

    Raises:
        ValueError: for shapes that do not fit, labels out of range, NaN, or an unknown convention.

    >>> x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> nc = collapse(x, torch.tensor([0, 0, 1, 1]))
    >>> nc.nc1, round(nc.nc1_quotient, 4), nc.ncc_accuracy  # all the spread is across the means' direction
    (0.0, 0.01, 1.0)

    (Papyan, Han, Donoho 2020, PNAS 117(40):24652.)
    """
    rule = convention_named(convention)[1]
    check_pair(features, labels)
    if not len(features):
        raise ValueError("no points to measure")
    if num_classes is None:
        given = means if means is not None else weight
        num_classes = len(given) if given is not None else int(labels.max()) + 1
    check_labels(labels, num_classes)
    dim = features.shape[1]
    check_classifier(weight, bias, num_classes, dim)
    if second_moment is None:
        second_moment = len(features) * dim * dim <= CHEAP and dim <= 2048
    moments = Moments(num_classes, dim, second_moment=second_moment, unit=rule.unit, device=features.device)
    moments.update(features, labels)
    for precise in (None if features.dtype == torch.float64 else False, True):
        projection = Projection(moments, weight=weight, bias=bias, means=means, convention=rule, precise=precise)
        projection.update(features, labels)
        if projection.certified:
            break
    return from_moments(moments, weight=weight, bias=bias, means=means, projection=projection, convention=convention)


@torch.no_grad()
def from_moments(
    moments: Moments,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    means: Tensor | None = None,
    projection: Projection | None = None,
    convention: str | Convention = "papyan2020",
) -> Collapse:
    """Measure from sums: everything that the moments hold; with `projection` everything else too.

    Args:
        moments: of the points that are measured.
        weight, bias: the classifier.
        means: class means that judge the points, if not their own.
        projection: second pass over the same points.
        convention: as in `collapse`; the one of the projection.

    Raises:
        ValueError: if the parts do not fit together.

    >>> m = Moments(2, 1)
    >>> m.update(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]))
    >>> nc = from_moments(m)
    >>> nc.nc1_quotient, nc.reasons["nc1"]
    (0.25, 'needs a second pass (Projection) or the second moment')
    """
    name, rule = convention_named(convention)
    check_classifier(weight, bias, moments.num_classes, moments.dim)
    if rule.unit != moments.unit:
        raise ValueError(f"convention {name} needs Moments(..., unit={rule.unit})")
    return Measurement(moments, weight, bias, means, projection, name, rule).result()
