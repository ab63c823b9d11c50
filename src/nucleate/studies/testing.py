"""How a network does: loss and accuracy on both splits, calibration, and which held-out points it gets right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.data import Dataset
from nucleate.machine.batches import points_at_once
from nucleate.machine.tuning import Tuning, tuned
from nucleate.probes.calibration import expected_calibration_error
from nucleate.probes.tap import evaluating
from nucleate.training.loop import loss_of

TRAIN_LABELS = 2000
"""Training labels that are looked at, the first ones; all held-out labels are."""


@dataclass(frozen=True)
class Tested:
    """Values by (split, metric), and what single held-out points gave."""

    values: dict[tuple[str, str], float]
    correct: np.ndarray[Any, Any]
    """(points,) of the held-out split: 1 where the largest output is the label; for sequences the share of them."""


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset, tuning: Tuning, *, loss: str) -> Tested:
    """Loss, accuracy and calibration error in eval mode and float32; training labels are the first 2,000.

    Sequences count by position: accuracy is the share of bytes that are right, the loss is in nats a byte.
    """
    values: dict[tuple[str, str], float] = {}
    right = torch.empty(0)
    device = next(model.parameters()).device
    seen = TRAIN_LABELS if data.train_labels.ndim == 1 else max(1, TRAIN_LABELS // data.train_labels.shape[1])
    splits = {
        "train": (data.train_inputs[:seen], data.train_labels[:seen]),
        "test": (data.test_inputs, data.test_labels),
    }
    with evaluating(model), tuned(tuning):
        for split, (inputs, labels) in splits.items():
            outputs, target = [], labels.to(device)
            total = 0.0
            size = points_at_once(model, labels)
            hits = []
            for x, y in zip(inputs.split(size), target.split(size), strict=True):
                z = model(x.to(device)).float()
                total += float(loss_of(z, y, loss, data.num_classes)) * len(y)
                hits.append((z.argmax(-1) == y).float())
                if split == "test" and labels.ndim == 1:
                    outputs.append(z)
            right = torch.cat(hits)
            values[split, "loss"] = total / len(labels)
            values[split, "accuracy"] = float(right.double().mean())
        if outputs:
            values["test", "ece"] = expected_calibration_error(torch.cat(outputs).softmax(1), target)
    return Tested(values, (right if right.ndim == 1 else right.mean(1)).cpu().numpy())


def chance_loss(data: Dataset) -> float:
    """Cross-entropy on held-out labels of always saying how frequent the classes are in training, in nats."""
    counts = torch.bincount(data.train_labels.flatten(), minlength=data.num_classes).double()
    share = (counts + 1) / (counts.sum() + data.num_classes)
    return float(-share.log()[data.test_labels.flatten()].mean())


def few(data: Dataset, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` training points drawn with a seed: what scores are taken on."""
    index = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))[:count]
    return data.train_inputs[index], data.train_labels[index]
