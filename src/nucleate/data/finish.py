"""What a source or a user's function gives -> checked tensors of one fixed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nucleate.data.dataset import DataError
from nucleate.data.noise import stratified_split

HELD_OUT = 0.2
"""Share of every class that is held out of a source that comes without a test set."""


@dataclass(frozen=True)
class Source:
    """Arrays as they came: inputs and labels of both splits, and what is known about them."""

    name: str
    x_train: Any
    y_train: Any
    x_test: Any = None
    """Held-out inputs; a fixed stratified fifth of the training points if none."""
    y_test: Any = None
    class_names: tuple[str, ...] | None = None
    superclasses: tuple[int, ...] | None = None
    input_range: tuple[float, float] | None = None
    """uint8 inputs are divided by 255 and range over [0, 1]; else the least and largest value if none."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Checked tensors: float32 inputs, int64 labels in 0 .. C-1, and the rest."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    superclasses: tuple[int, ...] | None
    input_range: tuple[float, float]


def finish(source: Source) -> Points:
    """Check a source's arrays and bring them into the form that every study reads.

    Inputs become float32: uint8 as shares of 255, other types as they are; grey images get a channel axis, images with
    the channels last are turned. Labels become int64.

    Raises:
        DataError: for shapes that do not fit, labels that are no classes, values that are not finite, no points.
    """
    where = source.name
    if (source.x_test is None) != (source.y_test is None):
        raise DataError(f"{where}: held-out inputs and labels come together or not at all")
    x_train, unit = _inputs(source.x_train, f"{where}: training")
    y_train = _labels(source.y_train, len(x_train), f"{where}: training")
    if source.x_test is None:
        kept, held_out = stratified_split(y_train, HELD_OUT)
        x_train, y_train, x_test, y_test = x_train[kept], y_train[kept], x_train[held_out], y_train[held_out]
        if not len(y_test):
            raise DataError(f"{where}: too few points to hold a fifth out of each class; give held-out points too")
    else:
        x_test, _ = _inputs(source.x_test, f"{where}: held-out")
        y_test = _labels(source.y_test, len(x_test), f"{where}: held-out")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{where}: a training input has shape {tuple(x_train.shape[1:])}, "
            f"a held-out one {tuple(x_test.shape[1:])}; they must be the same"
        )
    names = _class_names(source, y_train, y_test)
    if source.superclasses is not None and len(source.superclasses) != len(names):
        raise DataError(f"{where}: {len(source.superclasses)} superclasses for {len(names)} classes: give one each")
    low, high = source.input_range or ((0.0, 1.0) if unit else _range(x_train, x_test))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"{where}: the inputs range from {low:g} to {high:g}; they must vary")
    return Points(
        name=where,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=names,
        superclasses=source.superclasses,
        input_range=(low, high),
    )


def _range(*inputs: Tensor) -> tuple[float, float]:
    return min(float(x.min()) for x in inputs), max(float(x.max()) for x in inputs)


def _inputs(values: Any, what: str) -> tuple[Tensor, bool]:
    """Inputs as float32, and whether they were bytes and are now shares of 255."""
    array = _tensor(values, f"{what} inputs")
    if array.ndim not in (2, 3, 4):
        raise DataError(
            f"{what} inputs have shape {tuple(array.shape)}; they must be (N, d), (N, height, width) or "
            "(N, channels, height, width)"
        )
    if array.numel() == 0:
        raise DataError(f"{what} inputs have shape {tuple(array.shape)}: there is no value")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.permute(0, 3, 1, 2)
    if array.is_complex():
        raise DataError(f"{what} inputs are complex; they must be real numbers")
    unit = array.dtype == torch.uint8
    inputs = array.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if unit:
        inputs.div_(255)
    elif not bool(torch.isfinite(inputs).all()):
        bad = (~torch.isfinite(inputs.flatten(1))).any(1)
        raise DataError(
            f"{what} inputs hold NaN or infinite values in {int(bad.sum())} points, first {int(bad.int().argmax())}"
        )
    return inputs, unit


def _labels(values: Any, points: int, what: str) -> Tensor:
    array = _tensor(values, f"{what} labels")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{what} labels have shape {tuple(array.shape)}; they must be (N,), one class number a point")
    if array.is_floating_point() or array.is_complex():
        raise DataError(
            f"{what} labels have type {str(array.dtype).removeprefix('torch.')}; they must be whole numbers"
        )
    if len(array) != points:
        raise DataError(f"{what}: {points} inputs but {len(array)} labels; there must be one for each")
    labels = array.to(torch.int64, copy=True)
    if int(labels.min()) < 0:
        raise DataError(f"{what} labels hold {int(labels.min())}; classes are numbered from 0")
    return labels


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise DataError(f"{what} must be numbers, not {array.dtype}")
        # Only the native byte order becomes a tensor.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what} cannot be read as an array: {error}") from None


def _class_names(source: Source, y_train: Tensor, y_test: Tensor) -> tuple[str, ...]:
    classes = 1 + max(int(y_train.max()), int(y_test.max()))
    if source.class_names is not None:
        if len(source.class_names) < classes:
            raise DataError(f"{source.name}: label {classes - 1} but only {len(source.class_names)} class names")
        classes = len(source.class_names)
    if classes < 2:
        raise DataError(f"{source.name}: every label is 0; there must be at least two classes")
    if classes > len(y_train) + len(y_test):
        raise DataError(
            f"{source.name}: label {classes - 1} with only {len(y_train) + len(y_test)} points; "
            "classes are numbered 0, 1, ... without gaps"
        )
    return source.class_names or tuple(map(str, range(classes)))
