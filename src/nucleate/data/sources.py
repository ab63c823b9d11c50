"""Where points come from: a name, a path or a function of yours -> a data set in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from nucleate.data.dataset import DataError, Dataset
from nucleate.spec import DataSpec


def load(spec: DataSpec, root: Path | None = None) -> Dataset:
    """Data set that a spec asks for."""
    if spec.name != "digits":
        raise DataError(f"unknown data source {spec.name!r}")
    images, labels = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    y = torch.from_numpy(y_train).long()
    return Dataset(
        name="digits",
        train_inputs=torch.from_numpy(train).float().div(16).view(-1, 1, 8, 8),
        train_labels=y,
        clean_train_labels=y,
        test_inputs=torch.from_numpy(test).float().div(16).view(-1, 1, 8, 8),
        test_labels=torch.from_numpy(y_test).long(),
        class_names=tuple("0123456789"),
    )
