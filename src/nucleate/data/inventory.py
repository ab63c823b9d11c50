"""What data is where: found without reading more than headers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nucleate.data.dataset import DataError
from nucleate.data.folders import FOLDERS, cifar_files, data_root, find_folder, idx_files, parquet_files
from nucleate.data.parquet import parquet_rows
from nucleate.data.readers import idx_shape
from nucleate.data.sources import SOURCES
from nucleate.data.synthetic import SYNTHETIC


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of `nucleate data list`."""

    name: str
    found: bool
    """Whether `load` would find it; bundled and synthetic sources are always there."""
    kind: str
    """bundled, synthetic, idx, parquet or binary; empty if not found."""
    path: Path | None = None
    """Its folder."""
    train: int | None = None
    """Training points."""
    test: int | None = None
    """Held-out points."""
    size: int = 0
    """Bytes on disk."""
    problem: str = ""
    """What is wrong with it, or how to get it."""


def listing(root: Path | None = None) -> list[Listed]:
    """Every named source, in the order of `SOURCES`, and what is below the data root of those that need files.

    >>> [row.name for row in listing(Path("nowhere")) if row.found]
    ['digits', 'blobs', 'spirals', 'superclasses']
    """
    base = data_root(root)
    return [_listed(name, base) for name in SOURCES]


def _listed(name: str, root: Path) -> Listed:
    if name in SYNTHETIC:
        kind = SYNTHETIC[name]
        return Listed(name=name, found=True, kind="synthetic", train=kind.train_size, test=kind.test_size)
    if name not in FOLDERS:
        return Listed(name=name, found=True, kind="bundled", train=1438, test=359)
    try:
        folder = find_folder(name, root)
    except DataError as error:
        return Listed(name=name, found=False, kind="", problem=str(error))
    if folder is None:
        get = f"nucleate data fetch {name}" if not name.startswith("cifar") else f"put it into {root / name}"
        return Listed(name=name, found=False, kind="", problem=f"not below {root}: {get}")
    if idx := idx_files(folder):
        kind_of, files = "idx", list(idx.values())
    elif parquet := parquet_files(folder):
        kind_of, files = "parquet", [p for shards in parquet.values() for p in shards]
    else:
        kind_of, files = "binary", [p for parts in cifar_files(folder).values() for p in parts]
    size = sum(path.stat().st_size for path in files)
    try:
        train, test = _points(name, folder)
    except DataError as error:
        return Listed(name=name, found=True, kind=kind_of, path=folder, size=size, problem=str(error))
    return Listed(name=name, found=True, kind=kind_of, path=folder, train=train, test=test, size=size)


def _points(name: str, folder: Path) -> tuple[int, int]:
    if idx := idx_files(folder):
        if missing := {"train-images", "train-labels", "t10k-images", "t10k-labels"} - set(idx):
            raise DataError(f"{folder} lacks {', '.join(sorted(missing))}")
        return idx_shape(idx["train-images"])[0], idx_shape(idx["t10k-images"])[0]
    if parquet := parquet_files(folder):
        return parquet_rows(parquet.get("train", [])), parquet_rows(parquet.get("test", []))
    binary = cifar_files(folder)
    record = 3074 if name == "cifar100" else 3073
    return _records(binary["train"], record), _records(binary["test"], record)


def _records(paths: Iterable[Path], record: int) -> int:
    return sum(path.stat().st_size for path in paths) // record
