"""Text as bytes: windows of a file, each position labelled with the byte that follows."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nucleate.data.dataset import DataError, Dataset
from nucleate.data.folders import data_root
from nucleate.spec import DataSpec

HELD_OUT = 0.1
"""Share of the text, its end, that is held out."""
STANDARD_LIBRARY = 2_000_000
"""Bytes of the standard library's source that are read."""
TEXTS = ("python-source", "shakespeare")
"""Texts that have a name: one that every machine has, and tinyshakespeare/input.txt below the data root."""


def is_text(name: str) -> bool:
    """Whether a source is a text: a name in `TEXTS`, or a path that ends in .txt.

    >>> is_text("shakespeare"), is_text("book.txt"), is_text("digits")
    (True, True, False)
    """
    return name in TEXTS or name.endswith(".txt")


def load_text(spec: DataSpec, root: Path | None = None) -> Dataset:
    """Sequences of `spec.context` bytes (N, T) and the byte after each of them (N, T); classes are byte values.

    Windows do not overlap; the last tenth of the text is held out. A size takes windows evenly over the split.

    Raises:
        DataError: for a text that is missing, too short, or asked for label noise or imbalance.

    >>> data = load_text(DataSpec(name="python-source", context=32, train_size=100, test_size=10))
    >>> data.train_inputs.shape, bool((data.train_inputs[:, 1:] == data.train_labels[:, :-1]).all())
    (torch.Size([100, 32]), True)
    """
    if spec.label_noise or spec.imbalance != 1.0:
        raise DataError("a text takes no label noise and no imbalance; leave data.label_noise and data.imbalance alone")
    if spec.context < 2:
        raise DataError(f"data.context must be at least 2 bytes, not {spec.context}")
    content = torch.from_numpy(np.frombuffer(_content(spec.name, data_root(root)), dtype=np.uint8).copy()).long()
    cut = len(content) - int(HELD_OUT * len(content))
    x_train, y_train = _windows(content[:cut], spec.context, spec.train_size, "train")
    x_test, y_test = _windows(content[cut:], spec.context, spec.test_size, "test")
    return Dataset(
        name=spec.name,
        train_inputs=x_train,
        train_labels=y_train,
        clean_train_labels=y_train,
        test_inputs=x_test,
        test_labels=y_test,
        class_names=tuple(chr(b) if 32 <= b < 127 else f"0x{b:02x}" for b in range(256)),
        input_range=(0.0, 255.0),
    )


def _windows(content: Tensor, length: int, size: int | None, what: str) -> tuple[Tensor, Tensor]:
    count = (len(content) - 1) // length
    wanted = count if size is None else size
    if not 1 <= wanted <= count:
        raise DataError(f"data.{what}_size must be 1 to {count}, the text's windows of {length} bytes, not {wanted}")
    starts = torch.arange(wanted) * count // wanted * length
    index = starts[:, None] + torch.arange(length)
    return content[index], content[index + 1]


def _content(name: str, root: Path) -> bytes:
    if name == "python-source":
        found = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        return b"\n".join(path.read_bytes() for path in found)[:STANDARD_LIBRARY]
    path = root / "tinyshakespeare" / "input.txt" if name == "shakespeare" else Path(name).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror or error}") from None
