"""Native code that `pip install` may have built: loaded where it is, done without where it is not."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from pathlib import Path

DISABLE = "NUCLEATE_NO_NATIVE"
"""Environment variable that switches all native code off when it is "1"; everything then runs in plain torch."""


def disabled() -> bool:
    """Whether the user has switched native code off."""
    return os.environ.get(DISABLE) == "1"


def in_use() -> bool:
    """Whether `pip install` built native code that is not switched off."""
    package = Path(__file__).parents[1]
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    return not disabled() and any(path for s in suffixes for path in package.glob(f"*/native/*{s}"))


def load(folder: Path, name: str) -> tuple[ctypes.CDLL | None, str]:
    """The shared library built as extension module `name` in `folder`, or none and the reason.

    >>> load(Path("."), "_missing")
    (None, 'it was not built')
    """
    found = [path for s in importlib.machinery.EXTENSION_SUFFIXES if (path := folder / f"{name}{s}").exists()]
    if not found:
        return None, "it was not built"
    try:
        return ctypes.CDLL(str(found[0])), ""
    except OSError as error:
        return None, f"it does not load: {error}"
