"""The fast float32 product of this machine, used only where a self-test shows that it keeps float32's digits."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TOLERANCE = 2e-6
"""Largest relative error of a float32 product that counts as float32: the default route has about 3e-7, bf16 3e-3."""


@contextmanager
def fast_matmul(device: torch.device | str = "cpu") -> Iterator[str]:
    """Run float32 products by the fastest route that keeps their digits; the process's flag is restored afterwards.

    torch's "medium" route may use bfloat16, so it is taken only where `medium_keeps_float32` says that it does not. On
    some CPUs it merely selects another float32 kernel, several times faster for thin products.

    Yields:
        The precision in force: "medium", or whatever was set before.

    >>> before = torch.get_float32_matmul_precision()
    >>> with fast_matmul() as route:
    ...     route in ("medium", before)
    True
    >>> torch.get_float32_matmul_precision() == before
    True
    """
    before = torch.get_float32_matmul_precision()
    route = "medium" if medium_keeps_float32(str(torch.device(device))) else before
    torch.set_float32_matmul_precision(route)
    try:
        yield route
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def medium_keeps_float32(device: str = "cpu") -> bool:
    """Whether torch's "medium" products on this device stay within 2e-6 of float64, on thin, square and wide shapes.

    The relative error is |C - C64|_F / |C64|_F; measured once a process.
    """
    return relative_error(device, "medium") < TOLERANCE


def relative_error(device: str, precision: str) -> float:
    """Largest relative Frobenius error of float32 products against float64 at a matmul precision.

    >>> relative_error("cpu", "highest") < 2e-6
    True
    """
    generator = torch.Generator().manual_seed(0)
    before = torch.get_float32_matmul_precision()
    worst = 0.0
    try:
        torch.set_float32_matmul_precision(precision)
        for n, d, k in ((512, 512, 16), (256, 1024, 256), (64, 2048, 1024)):
            a = torch.randn(n, d, generator=generator).to(device)
            b = torch.randn(d, k, generator=generator).to(device)
            for left, right in ((a, b), (b.T.contiguous(), a.T)):
                exact = left.double() @ right.double()
                worst = max(
                    worst,
                    float(torch.linalg.matrix_norm((left @ right).double() - exact) / torch.linalg.matrix_norm(exact)),
                )
    finally:
        torch.set_float32_matmul_precision(before)
    return worst
