"""The shortcuts of a run: chosen once, stored with the run, replayed on resume."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nucleate.machine.matmul import fast_matmul, medium_keeps_float32


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What makes a run faster, and what its bits depend on."""

    threads: int
    matmul: Literal["default", "fast"] = "default"
    """fast: the matrix-product route that a self-test found faster and as exact as float32."""
    fused: bool = False
    """One kernel for the optimizer step."""
    bf16: bool = False
    """Forward and backward in bfloat16 with float32 weights; measures are never taken in it."""
    channels_last: bool = False
    """Memory layout of images."""


def choose_tuning(*, precision: str, threads: int | None, convolutional: bool, device: str) -> Tuning:
    """Choose for this machine: nothing but the threads for `precision="fp32"`.

    Raises:
        ValueError: for fewer than one thread.
    """
    count = threads or len(os.sched_getaffinity(0))
    if count < 1:
        raise ValueError(f"train.threads must be at least 1, not {threads}")
    if precision == "fp32":
        return Tuning(threads=count)
    cpu = device == "cpu"
    half = convolutional and (not cpu or torch.cpu._is_avx512_bf16_supported())
    return Tuning(
        threads=count,
        matmul="fast" if cpu and medium_keeps_float32() else "default",
        fused=True,
        bf16=half,
        channels_last=convolutional,
    )


def replay_tuning(stored: Mapping[str, Any]) -> Tuning:
    """The stored choices, if this machine can follow them.

    Raises:
        ValueError: if it cannot, so that a resumed run never silently differs from what it was.
    """
    tuning = Tuning(**stored)
    if tuning.matmul == "fast" and not medium_keeps_float32():
        raise ValueError(
            "this run was tuned with a float32 matrix product that is not exact on this machine; "
            "start a new one, or give --train.precision fp32"
        )
    return tuning


@contextmanager
def tuned(tuning: Tuning) -> Iterator[None]:
    """Threads and matrix-product route of a tuning, put back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(tuning.threads)
    try:
        if tuning.matmul == "fast":
            with fast_matmul():
                yield
        else:
            yield
    finally:
        torch.set_num_threads(before)


def as_dict(tuning: Tuning) -> dict[str, Any]:
    """Plain dict of a tuning, for env.json."""
    return dataclasses.asdict(tuning)
