"""Both passes over float32 features in plain C, each in one read; plain torch does the same where it is not built."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from nucleate.machine.extension import DISABLE, disabled, load

VERSION = 1
"""Of the C structures; a library built from other sources is not used."""
LANES = 8
"""Columns come in multiples of so many."""
WIDEST = 64
"""Columns of the widest thin product."""
WORTH = 1 << 20
"""Features below which a second thread costs more than it saves."""


class Features(ctypes.Structure):
    """`features_t` of stream.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("pitch", ctypes.c_int64),
        ("labels", ctypes.c_void_p),
        ("points", ctypes.c_int64),
        ("dim", ctypes.c_int64),
    )


class Sums(ctypes.Structure):
    """`sums_t` of stream.c."""

    _fields_ = (("sum", ctypes.c_void_p), ("square", ctypes.c_void_p), ("count", ctypes.c_void_p))


class Residual(ctypes.Structure):
    """`residual_t` of stream.c."""

    _fields_ = (
        ("means", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("residual", ctypes.c_void_p),
        ("length", ctypes.c_void_p),
        ("slack", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


def status() -> str:
    """One line for `doctor`: whether features are read by the C passes.

    >>> status().startswith("passes over features: ")
    True
    """
    if disabled():
        return f"passes over features: plain torch, as {DISABLE}=1 asks"
    return f"passes over features: {'native' if _library() else 'plain torch; install a C compiler and reinstall'}"


def takes(features: Tensor) -> bool:
    """Whether the C code is there and reads these (N, d) features as they lie in memory."""
    return (
        features.dtype == torch.float32
        and features.device.type == "cpu"
        and features.stride(1) == 1
        and not disabled()
        and _library() is not None
    )


def class_sums(features: Tensor, labels: Tensor, total: Tensor, square: Tensor, count: Tensor) -> None:
    """Add h, |h|^2 and 1 of every point to the float64 sums of its class.

    Args:
        features: (N, d) that `takes` accepts.
        labels: (N,) int64 within range.
        total: (C, d).
        square, count: (C,).
    """
    labels = labels.contiguous()
    for t in (total, square, count):
        assert t.dtype == torch.float64 and t.is_contiguous(), "sums are written to as they lie in memory"
    sums = Sums(total.data_ptr(), square.data_ptr(), count.data_ptr())
    library = _library()
    assert library is not None
    library.nucleate_class_sums(_features(features, labels), ctypes.byref(sums))


def residuals(
    features: Tensor,
    labels: Tensor,
    means: Tensor,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    residual: Tensor | None = None,
    length: Tensor,
    slack: Tensor | None = None,
) -> Tensor | None:
    """Fill `residual` r = h - mu_y, `length` |r| and `slack` <r, rows_y>; return r columns, (N, width).

    Products are float32 within 256 features and float64 over them.

    Args:
        features: (N, d) that `takes` accepts.
        labels: (N,) int64 within range.
        means, rows: (C, d) float32.
        columns: (d, width) float32, contiguous, of `padded` width.
        residual: (N, d) float32, contiguous.
        length: (N,) float32.
        slack: (N,) float64.
    """
    labels, means = labels.contiguous(), means.contiguous()
    # A classifier may come as the transpose of what its module holds.
    rows = None if rows is None else rows.contiguous()
    points = len(features)
    out = None if columns is None else features.new_empty(points, columns.shape[1])
    library = _library()
    assert library is not None

    def part(start: int, end: int) -> None:
        here = [None if t is None else t[start:end] for t in (residual, length, slack, out)]
        addresses = [None if t is None else t.data_ptr() for t in (means, rows, columns)]
        wanted = [None if t is None else t.data_ptr() for t in here]
        job = Residual(*addresses, 0 if columns is None else columns.shape[1], *wanted)
        library.nucleate_residuals(_features(features[start:end], labels[start:end]), ctypes.byref(job))

    _share(part, points, features.numel())
    return out


def padded(columns: Tensor) -> Tensor:
    """(d, k) columns, contiguous, with columns of zero up to a multiple of `LANES`.

    >>> padded(torch.ones(2, 3)).shape
    torch.Size([2, 8])
    """
    return torch.nn.functional.pad(columns, (0, -columns.shape[1] % LANES)).contiguous()


def _features(features: Tensor, labels: Tensor) -> object:
    points, dim = features.shape
    return ctypes.byref(Features(features.data_ptr(), features.stride(0), labels.data_ptr(), points, dim))


def _share(part: Callable[[int, int], None], points: int, work: int) -> None:
    """Run a part for each of torch's threads, where there is enough to do; a point's result is its own."""
    threads = min(torch.get_num_threads(), max(1, work // WORTH))
    if threads == 1:
        part(0, points)
        return
    edges = [points * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load(Path(__file__).parent, "_stream")[0]
    if library is None or not hasattr(library, "nucleate_stream_version"):
        return None
    if library.nucleate_stream_version() != VERSION:
        return None
    for function in (library.nucleate_class_sums, library.nucleate_residuals):
        function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
    return library
