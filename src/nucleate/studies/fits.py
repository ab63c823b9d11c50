"""What fitted outputs say: error and loss, right and wrong labels apart, and how much seeds agree."""

from __future__ import annotations

import itertools
import math

from torch import Tensor
from torch.nn import functional as F

Value = tuple[str, str, float]
"""Split, metric, value."""


def fit_values(
    train: Tensor, given: Tensor, clean: Tensor, test: Tensor, truth: Tensor, *, squared: bool
) -> list[Value]:
    """Measures of one model's outputs (N, C) on training points, labels as given and as they were, and on test points.

    `memorised` is the share of wrong labels that the model predicts, `recovered` the share of wrongly labelled points
    on which it predicts the right one. The loss is cross-entropy or, `squared`, the squared error summed over classes
    against one-hot targets less their mean. Outputs that are not all finite have no measures: all are nan.

    >>> import torch
    >>> z = torch.eye(2)
    >>> rows = fit_values(z, torch.tensor([0, 0]), torch.tensor([0, 1]), z, torch.tensor([0, 1]), squared=True)
    >>> {(split, metric): value for split, metric, value in rows}["train", "memorised"]
    0.0
    """
    predicted = train.argmax(1)
    wrong = given != clean
    rows = [
        ("train", "error", _share(predicted != given)),
        ("train", "loss", loss_of(train, given, squared=squared)),
        ("test", "error", _share(test.argmax(1) != truth)),
        ("test", "loss", loss_of(test, truth, squared=squared)),
        ("train", "clean_error", _share((predicted != given)[~wrong])),
    ]
    if bool(wrong.any()):
        rows.append(("train", "memorised", _share((predicted == given)[wrong])))
        rows.append(("train", "recovered", _share((predicted == clean)[wrong])))
    return rows if finite(train) and finite(test) else [(split, metric, math.nan) for split, metric, _ in rows]


def finite(outputs: Tensor) -> bool:
    """Whether a network gives numbers everywhere: one that diverged does not."""
    return bool(outputs.isfinite().all())


def loss_of(outputs: Tensor, labels: Tensor, *, squared: bool) -> float:
    """Mean loss over points, in float64."""
    z = outputs.double()
    if squared:
        return float((z - F.one_hot(labels, z.shape[1]) + 1 / z.shape[1]).square().sum(1).mean())
    return float(F.cross_entropy(z, labels))


def agreement(outputs: Tensor, truth: Tensor, *, squared: bool) -> list[Value]:
    """How the outputs (S, N, C) of S seeds differ on the same N points: churn, variance, bias, the ensemble's error.

    churn: mean over pairs of the share of points on which two seeds disagree. variance: mean over points of
    (1/S) sum |f_s - f|^2, with f the mean over seeds, of outputs (squared loss) or of softmax outputs. bias: |f - y|^2
    less variance / (S - 1), without which it holds a part of the variance. Fewer than two seeds give nothing; seeds
    with outputs that are not finite are left out.
    """
    outputs = outputs[outputs.isfinite().flatten(1).all(1)]
    count = len(outputs)
    if count < 2:
        return []
    predicted = outputs.argmax(2)
    pairs = [_share(predicted[i] != predicted[j]) for i, j in itertools.combinations(range(count), 2)]
    values = outputs.double() if squared else outputs.double().softmax(2)
    mean = values.mean(0)
    variance = float((values - mean).square().sum(2).mean())
    target = F.one_hot(truth, values.shape[2]) - (1 / values.shape[2] if squared else 0.0)
    plug_in = float((mean - target).square().sum(1).mean())
    return [
        ("test", "churn", sum(pairs) / len(pairs)),
        ("test", "variance", variance),
        ("test", "bias_squared", plug_in - variance / (count - 1)),
        ("test", "ensemble_error", _share(mean.argmax(1) != truth)),
    ]


def _share(hits: Tensor) -> float:
    return float(hits.double().mean()) if len(hits) else float("nan")
