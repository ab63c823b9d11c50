"""The fast float32 product of this machine, used only where a self-test shows that it keeps float32's digits."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TOLERANCE = 2e-6
"""Largest relative error of a float32 product that counts as float32: the default route has about 3e-7, bf16 3e-3."""

FASTER = 1.3
"""Gain from which the other route is taken: where it is another kernel the gain is twofold, where it is none it is 1,
and between the two every process decides alike."""


@contextmanager
def fast_matmul(device: torch.device | str = "cpu") -> Iterator[str]:
    """Run float32 products by the fastest route that keeps their digits; the process's flag is restored afterwards.

    torch's "medium" route may use bfloat16, so it is taken only where `medium_keeps_float32` says that it does not. On
    some CPUs it merely selects another float32 kernel, several times faster for thin products; it is taken only where
    `medium_is_faster` finds that it does.

    Yields:
        The precision in force: "medium", or whatever was set before.

    >>> before = torch.get_float32_matmul_precision()
    >>> with fast_matmul() as route:
    ...     route in ("medium", before)
    True
    >>> torch.get_float32_matmul_precision() == before
    True
    """
    name = str(torch.device(device))
    pays = medium_keeps_float32(name) and medium_is_faster(name)
    with matmul_route("medium" if pays else torch.get_float32_matmul_precision()) as route:
        yield route


@contextmanager
def matmul_route(precision: str) -> Iterator[str]:
    """Run float32 products at a named precision of torch's, which is put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield precision
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def medium_keeps_float32(device: str = "cpu") -> bool:
    """Whether torch's "medium" products on this device stay within 2e-6 of float64, on thin, square and wide shapes.

    The relative error is |C - C64|_F / |C64|_F; measured once a process.
    """
    return relative_error(device, "medium") < TOLERANCE


@functools.cache
def medium_is_faster(device: str = "cpu") -> bool:
    """Whether torch's "medium" route takes a thin product on this device in less than 1 / 1.3 of the default's time.

    Best of seven each, run by turns, milliseconds in all; measured once a process.
    """
    a, b = torch.ones(2048, 512, device=device), torch.ones(512, 16, device=device)
    routes = torch.get_float32_matmul_precision(), "medium"
    best = [float("inf")] * 2
    for _ in range(7):
        for i, precision in enumerate(routes):
            with matmul_route(precision):
                start = time.perf_counter()
                # Reading an element waits for a GPU.
                (a @ b)[0, 0].item()
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] > FASTER * best[1]


@functools.cache
def bf16_is_native(device: str = "cpu") -> bool:
    """Whether the device multiplies bfloat16 numbers in hardware.

    >>> isinstance(bf16_is_native(), bool)
    True
    """
    if torch.device(device).type != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def relative_error(device: str, precision: str) -> float:
    """Largest relative Frobenius error of float32 products against float64 at a matmul precision.

    >>> relative_error("cpu", "highest") < 2e-6
    True
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with matmul_route(precision):
        for n, d, k in ((512, 512, 16), (256, 1024, 256), (64, 2048, 1024)):
            a = torch.randn(n, d, generator=generator).to(device)
            b = torch.randn(d, k, generator=generator).to(device)
            for left, right in ((a, b), (b.T.contiguous(), a.T)):
                exact = left.double() @ right.double()
                worst = max(
                    worst,
                    float(torch.linalg.matrix_norm((left @ right).double() - exact) / torch.linalg.matrix_norm(exact)),
                )
    return worst
