"""Known faults of an installation, each with what to do about it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from nucleate.machine.selftest import cache_folder

IMPORT_SECONDS = 60


def faults() -> list[str]:
    """One line for every fault found: what is wrong, and what to do.

    >>> isinstance(faults(), list)
    True
    """
    checks: list[Callable[[], str | None]] = [_driver, _torchvision, _threads, _cache, _data]
    return [line for line in (check() for check in checks) if line]


def _driver() -> str | None:
    if torch.version.cuda is None or torch.cuda.is_available():
        return None
    return (
        f"this torch was built for CUDA {torch.version.cuda}, but no CUDA driver or GPU can be used: all runs on "
        "the CPU; install a driver, or the smaller CPU build of torch"
    )


def _torchvision() -> str | None:
    if importlib.util.find_spec("torchvision") is None:
        return None
    # A torchvision built for another torch fails on import, or takes the process with it.
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=IMPORT_SECONDS
        )
        error = done.stderr.strip().splitlines()[-1:] or ["it ended the process"]
    except subprocess.TimeoutExpired:
        return f"importing torchvision takes more than {IMPORT_SECONDS} s; nucleate does not need it: uninstall it"
    if done.returncode == 0:
        return None
    return (
        f"torchvision cannot be loaded beside torch {torch.__version__} ({error[0]}): what imports it fails too; "
        "nucleate does not need it: uninstall it, or install the build made for this torch"
    )


def _threads() -> str | None:
    given, cores = os.environ.get("OMP_NUM_THREADS", ""), len(os.sched_getaffinity(0))
    if not given.isdigit() or int(given) <= cores:
        return None
    return f"OMP_NUM_THREADS is {given} on {cores} usable cores: threads wait for each other; unset it"


def _cache() -> str | None:
    folder = cache_folder()
    nearest = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return None
    return f"{folder} cannot be written: every process repeats the self-test; set NUCLEATE_CACHE to a folder"


def _data() -> str | None:
    root = os.environ.get("NUCLEATE_DATA")
    if root is None or Path(root).is_dir():
        return None
    return f"NUCLEATE_DATA is {root}, which is no folder"
