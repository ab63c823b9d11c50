"""The sparse kernel in plain C: found where `pip install` has built it, and done without where it has not."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nucleate.machine.extension import DISABLE, disabled, load

VERSION = 3
"""Of the C structures; a library built from other sources is not used."""

PRODUCT, COPY, MAXIMUM, AVERAGE, ADD, CLEAR, TRANSLATE, GRADIENT, GELU = range(9)
PICK, LOSS, BACK, TURN, UPDATE = range(9, 14)


class Product(ctypes.Structure):
    """`product_t` of kernel.h: where a sparse product finds its operands."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("segments", ctypes.c_int64),
        ("pointers", ctypes.c_void_p),
        ("indices", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("wide", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("relu", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("unit", ctypes.c_int64),
        ("x_step", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("y_pitch", ctypes.c_int64),
        ("y_step", ctypes.c_int64),
        ("lines", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("gradient", ctypes.c_void_p),
    )


class Layout(ctypes.Structure):
    """`layout_t` of kernel.h: where a value of an image lies, in floats."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("channel", "phase_y", "phase_x", "row", "column", "batch", "phases", "pad_y", "pad_x")
    )


class Learn(ctypes.Structure):
    """`learn_t` of kernel.h: what a training step needs beside products."""

    _fields_ = (
        ("index", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
        ("squared", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("values", "gradient", "first", "second", "order", "rates")),
        ("count", ctypes.c_int64),
        ("adam", ctypes.c_int64),
    )


class Step(ctypes.Structure):
    """`step_t` of kernel.h: one step of a plan."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("product", Product),
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("from_", Layout),
        ("to", Layout),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("channels", "height", "width", "batch", "out_height", "out_width", "window_y", "window_x"),
                *("stride_y", "stride_x", "pad_y", "pad_x", "relu"),
            )
        ),
        ("table", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("rows_per_group", ctypes.c_int64),
        ("group_step", ctypes.c_int64),
        ("learn", Learn),
    )


def available() -> bool:
    """Whether the kernel is built, of this version, and not switched off by NUCLEATE_NO_NATIVE=1."""
    return not disabled() and _library()[0] is not None


def status() -> str:
    """One line for `doctor`: the instruction set in use, or why there is no kernel and what to do.

    >>> status().startswith("sparse kernel: ")
    True
    """
    if disabled():
        return f"sparse kernel: switched off by {DISABLE}=1; sparse layers run as dense ones"
    library, reason = _library()
    if library is None:
        return f"sparse kernel: none ({reason}); sparse layers run as dense ones; install a C compiler and reinstall"
    return f"sparse kernel: {instruction_set()}, {torch.get_num_threads()} threads"


def instruction_set(name: str | None = None) -> str:
    """The instruction set in use, after selecting the named one ("baseline", "avx2", "avx512") where there is it.

    None selects the widest of this processor.

    Raises:
        ValueError: if there is no kernel.
    """
    library, reason = _library()
    if library is None:
        raise ValueError(f"there is no sparse kernel: {reason}")
    chosen: bytes = library.nucleate_select(name.encode() if name else None)
    return chosen.decode()


def run(steps: ctypes.Array[Step] | Step, count: int = 1) -> None:
    """Run steps one after the other on torch's number of threads, without holding Python's lock."""
    library = _library()[0]
    assert library is not None, "ask available() first"
    library.nucleate_run(ctypes.byref(steps), count, torch.get_num_threads())


def pointer(tensor: Tensor | None, offset: int = 0) -> int | None:
    """Address of a tensor's first value, or of the one `offset` values further."""
    return None if tensor is None else tensor.data_ptr() + offset * tensor.element_size()


@functools.cache
def _library() -> tuple[Any, str]:
    """The loaded library, or None and the reason."""
    library, reason = load(Path(__file__).parent, "_kernel")
    if library is None:
        return None, reason
    for name, result, arguments in (
        ("nucleate_version", ctypes.c_int64, []),
        ("nucleate_step_size", ctypes.c_int64, []),
        ("nucleate_select", ctypes.c_char_p, [ctypes.c_char_p]),
        ("nucleate_run", None, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.nucleate_version() != VERSION or library.nucleate_step_size() != ctypes.sizeof(Step):
        return None, "it was built from other sources"
    library.nucleate_select(None)
    return library, ""
