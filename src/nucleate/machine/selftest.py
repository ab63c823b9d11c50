"""What pays on this machine: measured once, kept in a file, so that every run on it is tuned alike.

Choices decide the bits of a training, and timings vary. So the first self-test of a machine is written down (to
NUCLEATE_CACHE, or ~/.cache/nucleate), and every later run, in whatever process, reads it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adam import adam

from nucleate.machine.matmul import TOLERANCE, bf16_is_native, relative_error

SECONDS = 0.15
"""Each comparison ends after this long, or after its rounds."""
ROUNDS = 7
MARGIN = 1.1
"""A shortcut is taken where it is at least this much faster."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Measured on one machine: errors, and gains (time without over time with)."""

    device: str
    name: str
    """Of the processor or GPU."""
    cores: int
    torch: str
    matmul_error: float
    """Relative Frobenius error of float32 products on torch's "medium" route, against float64."""
    matmul_gain: float
    """"medium" against the default route, on the products of a training step of LeNet-300-100."""
    fused_gain: float
    """Adam's update in one kernel against torch's default."""
    bf16_gain: float
    """bfloat16 autocast with channels_last against float32, forward and backward through convolutions; 0, unmeasured,
    where the processor only emulates bfloat16, many times slower."""
    channels_last_gain: float
    """channels_last against the default layout in float32, forward and backward through convolutions."""
    thread_gain: float
    """All cores as threads against one thread, on the products of LeNet-300-100; processes would gain the cores."""
    seconds: float
    """What the test took."""

    @property
    def matmul(self) -> bool:
        """Whether the "medium" route is float32 and faster."""
        return self.matmul_error < TOLERANCE and self.matmul_gain >= MARGIN

    @property
    def fused(self) -> bool:
        """Whether the fused update is faster."""
        return self.fused_gain >= MARGIN

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 with channels_last is faster than either layout in float32."""
        return self.bf16_gain >= MARGIN * max(1.0, self.channels_last_gain)

    @property
    def channels_last(self) -> bool:
        """Whether channels_last is faster; with bfloat16 it always comes along."""
        return self.bf16 or self.channels_last_gain >= MARGIN

    @property
    def threads(self) -> int:
        """Threads of a training that has the machine to itself."""
        return self.cores if self.thread_gain >= MARGIN else 1


@functools.cache
def self_test(device: str = "cpu") -> SelfTest:
    """The self-test of this machine: the one written down, else measured now and written down.

    >>> self_test().matmul_error >= 0
    True
    """
    path = cache_folder() / f"self-test-{_key(device)}.json"
    found = _read(path)
    if found is not None:
        return found
    fresh = measure(device)
    keep(fresh, replace=False)
    return _read(path) or fresh


def keep(test: SelfTest, *, replace: bool) -> bool:
    """Write a self-test down for all later runs; without `replace`, the first of several processes wins.

    Returns:
        Whether there is a folder to keep it in.
    """
    path = cache_folder() / f"self-test-{_key(test.device)}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(test), indent=1))
        if replace:
            temporary.replace(path)
        else:
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                if _read(path) is None:
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def cache_folder() -> Path:
    """NUCLEATE_CACHE, else nucleate in the user's cache folder."""
    own = os.environ.get("NUCLEATE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nucleate"


def measure(device: str = "cpu") -> SelfTest:
    """Run the self-test, a second at most; thread count and product route are put back."""
    begun = time.monotonic()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cores = len(os.sched_getaffinity(0))
    try:
        torch.set_num_threads(1)
        matmul_error = relative_error(device, "medium")
        matmul_gain = _gain(_products(device, precision), _products(device, "medium"), device)
        torch.set_float32_matmul_precision(precision)
        plain, fused = (_adam(device, fused=on) for on in (False, True))
        fused_gain = _gain(plain, fused, device)
        images = _convolutions(device, bf16=False, channels_last=False)
        last_gain = _gain(images, _convolutions(device, bf16=False, channels_last=True), device)
        half_gain = 0.0
        if bf16_is_native(device):
            half_gain = _gain(images, _convolutions(device, bf16=True, channels_last=True), device)
        thread_gain = _thread_gain(device, cores)
        return SelfTest(
            device=device,
            name=_name(device),
            cores=cores,
            torch=torch.__version__,
            matmul_error=matmul_error,
            matmul_gain=matmul_gain,
            fused_gain=fused_gain,
            bf16_gain=half_gain,
            channels_last_gain=last_gain,
            thread_gain=thread_gain,
            seconds=round(time.monotonic() - begun, 3),
        )
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _gain(slow: Callable[[], object], fast: Callable[[], object], device: str) -> float:
    """Best time of one over best time of the other, run by turns; the time of this thread alone on a CPU."""
    best = [float("inf")] * 2
    begun = time.monotonic()
    for done in range(ROUNDS + 1):
        if done > 1 and time.monotonic() - begun > SECONDS:
            break
        for i, call in enumerate((slow, fast)):
            best[i] = min(best[i], _seconds(call, device))
    return best[0] / best[1]


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.thread_time()
        call()
        return time.thread_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _products(device: str, precision: str) -> Callable[[], None]:
    x, w, d = (torch.ones(shape, device=device) for shape in ((60, 784), (300, 784), (60, 300)))

    def run() -> None:
        torch.set_float32_matmul_precision(precision)
        for _ in range(2):
            _ = x @ w.T
            _ = d.T @ x

    return run


def _adam(device: str, *, fused: bool) -> Callable[[], None]:
    # The function and not the class, whose first use imports torch's compiler: two seconds.
    values, gradients, first, second = (
        [torch.ones(shape, device=device) for shape in ((300, 784), (100, 300), (10, 100))] for _ in range(4)
    )
    steps = [torch.zeros((), device=device if fused else "cpu") for _ in values]

    def run() -> None:
        for _ in range(3):
            adam(
                values, gradients, first, second, [], steps,
                fused=fused, foreach=device != "cpu" and not fused, amsgrad=False, beta1=0.9, beta2=0.999, lr=1e-3,
                weight_decay=0.0, eps=1e-8, maximize=False,
            )  # fmt: skip

    return run


def _convolutions(device: str, *, bf16: bool, channels_last: bool) -> Callable[[], None]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1))
    model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.ones(8, 16, 16, 16, device=device).contiguous(memory_format=layout)

    def run() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
            out: Tensor = model(x)
        F.relu(out.float()).sum().backward()

    return run


def _thread_gain(device: str, cores: int) -> float:
    if device != "cpu" or cores == 1:
        return 1.0
    x, w = torch.ones(60, 784), torch.ones(300, 784)
    best = {1: float("inf"), cores: float("inf")}
    begun = time.monotonic()
    # Threads that have to share their cores with other work wait for each other: one product can take a second.
    while time.monotonic() - begun < SECONDS:
        for count in best:
            torch.set_num_threads(count)
            for _ in range(2):
                start = time.perf_counter()
                _ = x @ w.T
                best[count] = min(best[count], time.perf_counter() - start)
    return best[1] / best[cores]


def _name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _key(device: str) -> str:
    parts = [FORMAT, device, _name(device), torch.backends.cpu.get_cpu_capability(), torch.__version__]
    cores = len(os.sched_getaffinity(0))
    return hashlib.sha256(json.dumps([*parts, cores, platform.node()]).encode()).hexdigest()[:12]


def _read(path: Path) -> SelfTest | None:
    """What was written down; None if there is nothing, or nothing that can be used."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"str": str, "int": int, "float": float}
    if not isinstance(values, dict) or values.keys() != {f.name for f in fields(SelfTest)}:
        return None
    if not all(isinstance(values[f.name], kinds[str(f.type)]) for f in fields(SelfTest)):
        return None
    return SelfTest(**values)
