"""The shortcuts of a run: chosen once, stored with the run, replayed on resume."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nucleate.machine.devices import check_device
from nucleate.machine.extension import DISABLE, in_use
from nucleate.machine.matmul import bf16_is_native, matmul_route, medium_keeps_float32
from nucleate.machine.selftest import self_test


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
    sparse_below: float | None = None
    """Density of masks below which training the surviving weights alone is faster, where that was measured."""
    native: bool | None = None
    """Whether native code serves where it can; not known of runs of earlier versions."""


def choose_tuning(*, precision: str, threads: int | None, convolutional: bool, device: str) -> Tuning:
    """Choose for this machine by its self-test: nothing but the threads for `precision="fp32"`.

    Raises:
        ValueError: for fewer than one thread, or a device that this computer lacks.
    """
    check_device(device, "train.device")
    if threads is not None and threads < 1:
        raise ValueError(f"train.threads must be at least 1, not {threads}")
    if precision == "fp32":
        return Tuning(threads=threads or len(os.sched_getaffinity(0)), native=in_use())
    test = self_test(device)
    return Tuning(
        threads=threads or test.threads,
        matmul="fast" if test.matmul and device == "cpu" else "default",
        fused=test.fused,
        bf16=convolutional and test.bf16,
        channels_last=convolutional and test.channels_last,
        native=in_use(),
    )


def replay_tuning(stored: Mapping[str, Any], *, device: str = "cpu") -> Tuning:
    """The stored choices, if this machine can follow them.

    Raises:
        ValueError: if it cannot, so that a resumed run never silently differs from what it was.
    """
    known = {f.name for f in dataclasses.fields(Tuning)}
    # Runs of earlier versions did not store when sparse training is faster, and whether native code served.
    if stored.keys() | {"sparse_below", "native"} != known:
        raise ValueError(f"this run's tuning names {', '.join(stored)}; this version knows {', '.join(sorted(known))}")
    tuning = Tuning(**stored)
    instead = "start a new one, or give --train.precision fp32"
    if tuning.matmul == "fast" and not medium_keeps_float32():
        raise ValueError(
            f"this run was tuned with a float32 matrix product that is not exact on this machine; {instead}"
        )
    if tuning.native not in (None, in_use()):
        raise ValueError(
            f"this run was begun {'with' if tuning.native else 'without'} native code, which changes its bits: go on "
            f"where it was begun ({DISABLE}=1 switches native code off), or start a new one in another folder"
        )
    if tuning.bf16 and not bf16_is_native(device):
        raise ValueError(f"this run was tuned with bfloat16, which this machine's {device} only emulates; {instead}")
    return tuning


@contextmanager
def tuned(tuning: Tuning) -> Iterator[None]:
    """Threads and matrix-product route of a tuning, put back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(tuning.threads)
    try:
        if tuning.matmul == "fast":
            with matmul_route("medium"):
                yield
        else:
            yield
    finally:
        torch.set_num_threads(before)


def as_dict(tuning: Tuning) -> dict[str, Any]:
    """Plain dict of a tuning, for env.json."""
    return dataclasses.asdict(tuning)
