"""nucleate doctor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nucleate.cli.arguments import parse

if TYPE_CHECKING:
    from nucleate.machine.selftest import SelfTest


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Measure this machine anew, keep the result for later runs, and name known faults."""

    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    json: bool = False
    """Print the measurement as one JSON object instead."""


def doctor(args: Sequence[str]) -> int:
    """What this machine does fast, by measuring; known faults of the installation."""
    options = parse(DoctorOptions, args, "nucleate doctor", default=DoctorOptions())

    from nucleate.compact.native import status
    from nucleate.geometry import native
    from nucleate.machine.devices import check_device
    from nucleate.machine.doctor import faults
    from nucleate.machine.selftest import cache_folder, keep, measure

    check_device(options.device, "--device")
    test = measure(options.device)
    kept = keep(test, replace=True)
    found = faults()
    if options.json:
        print(json.dumps(asdict(test) | {"sparse_kernel": status(), "faults": found}))
        return 0
    print(f"{test.name}, {test.cores} cores, torch {test.torch}, {options.device}\n")
    print("\n".join(_lines(test)))
    where = f"kept in {cache_folder()} for every later run" if kept else "not kept: no folder to write to"
    print(f"\nmeasured in {test.seconds:.1f} s, {where}")
    print(f"{status()}\n{native.status()}")
    print("\n".join(f"fault: {line}" for line in found) or "no known fault")
    return 0


def _lines(test: SelfTest) -> list[str]:
    def line(what: str, taken: bool | str, gain: float, note: str = "") -> str:
        word = taken if isinstance(taken, str) else "yes" if taken else "no"
        return f"{what:44s}{word:>12s}{gain:9.2f}x  {note}".rstrip()

    return [
        f"{'shortcut':44s}{'taken':>12s}{'gain':>10s}",
        line("torch's other float32 product", test.matmul, test.matmul_gain, f"error {test.matmul_error:.1e}"),
        line("fused optimizer step", test.fused, test.fused_gain),
        line("channels_last for convolutions", test.channels_last, test.channels_last_gain),
        line(
            "bfloat16 and channels_last for convolutions",
            test.bf16,
            test.bf16_gain,
            "" if test.bf16_gain else "not measured: this processor only emulates bfloat16",
        ),
        line(
            "threads of a run alone",
            f"{test.threads}",
            test.thread_gain,
            f"processes instead: up to {test.cores / max(test.thread_gain, 1.0):.1f}x more" if test.cores > 1 else "",
        ),
    ]
