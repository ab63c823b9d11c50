"""Data sets by name, and those that are there without a file."""

from __future__ import annotations

from pathlib import Path

from nucleate.data import Dataset, load
from nucleate.data.synthetic import SYNTHETIC
from nucleate.spec import DataSpec

HERE = ["digits", *SYNTHETIC]


def get(name: str, root: Path | None = None, **fields: object) -> Dataset:
    return load(DataSpec(name=name, **fields), root)  # type: ignore[arg-type]
