"""Where the files of a data set lie below the data root, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nucleate.data.dataset import DataError
from nucleate.data.finish import Source
from nucleate.data.parquet import Table, read_parquet
from nucleate.data.readers import Array, read_cifar_binary, read_idx, read_npz

DIGITS = tuple("0123456789")
GARMENTS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

FOLDERS: dict[str, tuple[str, ...]] = {
    "mnist": ("mnist", "MNIST", "MNIST/raw"),
    "fashion": ("fashion-mnist", "fashion", "fashion_mnist", "FashionMNIST/raw"),
    "cifar10": ("cifar10", "cifar-10", "cifar10-jpeg", "cifar-10-batches-bin", "CIFAR10"),
    "cifar100": ("cifar100", "cifar-100", "cifar100-jpeg", "cifar-100-binary", "CIFAR100"),
}
"""Folders below the data root that are tried for each source, in order."""

_IDX_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def data_root(root: Path | None = None) -> Path:
    """The argument, else the variable NUCLEATE_DATA, else `nucleate/data` in the user's cache folder."""
    if root is not None:
        return Path(root).expanduser()
    if named := os.environ.get("NUCLEATE_DATA"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "nucleate" / "data"


def find_folder(name: str, root: Path) -> Path | None:
    """First folder below the root that holds files of the named source, or none."""
    for alias in FOLDERS[name]:
        folder = root / alias
        if idx_files(folder) or parquet_files(folder) or cifar_files(folder):
            return folder
    return None


def require_folder(name: str, root: Path) -> Path:
    """Folder of the named source below the root.

    Raises:
        DataError: with the root that was searched and the command that fills it.
    """
    folder = find_folder(name, root)
    if folder is not None:
        return folder
    where = f"no {name} below the data root {root} (looked in {', '.join(FOLDERS[name])})"
    for alias in FOLDERS[name]:
        if pickled := [p.name for p in listdir(root / alias) if _is_pickle(p)]:
            raise DataError(
                f"{where}: {root / alias} holds Python pickles ({pickled[0]}), which are never opened because a pickle "
                "can run any code; put the official binary version or parquet files there"
            )
    python = root / ("cifar-10-batches-py" if name == "cifar10" else "cifar-100-python")
    if name.startswith("cifar") and python.is_dir():
        raise DataError(
            f"{where}: {python} holds Python pickles, which are never opened because a pickle can run any code; "
            "put the official binary version or parquet files there"
        )
    if name.startswith("cifar"):
        raise DataError(
            f"{where}; put the official binary version (*.bin) or parquet files (train*.parquet, test*.parquet) into "
            f"{root / FOLDERS[name][0]}, or name another root with --data-root or NUCLEATE_DATA"
        )
    raise DataError(
        f"{where}; `nucleate data fetch {name}` downloads it, --data-root or NUCLEATE_DATA names another root"
    )


def read_folder(name: str, folder: Path) -> Source:
    """Source in a folder: IDX files, parquet files or CIFAR's binary files, whichever are there.

    Raises:
        DataError: if there are none, some are missing, or one is damaged.
    """
    if idx := idx_files(folder):
        return _idx_source(name, folder, idx)
    if parquet := parquet_files(folder):
        return _parquet_source(name, folder, parquet)
    if binary := cifar_files(folder):
        return _cifar_source(name, folder, binary)
    files = listdir(folder)
    if pickled := [p.name for p in files if _is_pickle(p)]:
        raise DataError(f"{folder} holds Python pickles ({pickled[0]}), which are never opened; use a binary version")
    raise DataError(
        f"{folder} holds no data that is known here: IDX files (train-images-idx3-ubyte[.gz], ...), "
        "train*.parquet with test*.parquet, or CIFAR's *.bin"
    )


def read_file(path: Path) -> Source:
    """Source in one file: `.npz` (x_train, y_train, x_test, y_test; or x, y) or parquet without a test split.

    Raises:
        DataError: for another kind of file, missing arrays, or a damaged file.
    """
    if path.suffix == ".parquet":
        return _of_tables(path.name, read_parquet([path]), None)
    if path.suffix != ".npz":
        raise DataError(f"{path} is neither a folder nor an .npz or .parquet file")
    arrays = read_npz(path)
    if {"x_train", "y_train"} <= set(arrays):
        return Source(path.name, arrays["x_train"], arrays["y_train"], arrays.get("x_test"), arrays.get("y_test"))
    if {"x", "y"} <= set(arrays):
        return Source(path.name, arrays["x"], arrays["y"])
    raise DataError(
        f"{path} holds {', '.join(arrays) or 'nothing'}; it must hold x_train, y_train, x_test and y_test, or x and y"
    )


def listdir(folder: Path) -> list[Path]:
    """Files of a folder by name; none where there is no such folder.

    Raises:
        DataError: if it may not be read.
    """
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from None


def idx_files(folder: Path) -> dict[str, Path]:
    """The IDX files of a folder by part, under their usual names (`train-images-idx3-ubyte`, `.gz` or not)."""
    found: dict[str, Path] = {}
    for path in listdir(folder):
        for part in _IDX_PARTS:
            stem = path.name.replace("test-", "t10k-")
            if stem.startswith(part) and "idx" in stem and not path.name.endswith(".part"):
                found.setdefault(part, path)
    return found


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Parquet shards of a folder (or of its `data` folder) by split, in name order."""
    for place in (folder, folder / "data", folder / "plain_text"):
        files = [p for p in listdir(place) if p.suffix == ".parquet"]
        if files:
            splits = {s: [p for p in files if p.name.startswith(s)] for s in ("train", "test")}
            return {s: shards for s, shards in splits.items() if shards}
    return {}


def cifar_files(folder: Path) -> dict[str, list[Path]]:
    """CIFAR's binary files of a folder (or of the folder that its archive unpacks to) by split."""
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-100-binary"):
        files = [p for p in listdir(place) if p.suffix == ".bin"]
        if files:
            train = [p for p in files if p.name.startswith("data_batch_") or p.name == "train.bin"]
            return {"train": train, "test": [p for p in files if p.name in ("test_batch.bin", "test.bin")]}
    return {}


def _is_pickle(path: Path) -> bool:
    return path.suffix in (".pkl", ".pickle", ".pt", ".pth") or path.name in (
        "data_batch_1",
        "batches.meta",
        "cifar-10-batches-py",
        "cifar-100-python",
    )


def _idx_source(name: str, folder: Path, files: dict[str, Path]) -> Source:
    if missing := [p for p in _IDX_PARTS if p not in files]:
        raise DataError(f"{folder} lacks the IDX files {', '.join(missing)}; fetch it again, or complete it")
    arrays = {part: read_idx(path) for part, path in files.items()}
    names = {"mnist": DIGITS, "fashion": GARMENTS}.get(name)
    title = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}.get(name, name)
    return Source(
        title, arrays["train-images"], arrays["train-labels"], arrays["t10k-images"], arrays["t10k-labels"], names
    )


def _parquet_source(name: str, folder: Path, files: dict[str, list[Path]]) -> Source:
    if "train" not in files:
        raise DataError(f"{folder} has parquet files, but none is named train*.parquet")
    label = "fine_label" if name == "cifar100" else None
    train = read_parquet(files["train"], label=label)
    test = read_parquet(files["test"], label=label) if "test" in files else None
    if test is None and name in FOLDERS:
        raise DataError(f"{folder} has train*.parquet but no test*.parquet")
    title = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(name, name)
    return _of_tables(title, train, test, OBJECTS if name == "cifar10" else None)


def _of_tables(name: str, train: Table, test: Table | None, names: Sequence[str] | None = None) -> Source:
    class_names = tuple(names) if names else train.names
    return Source(
        f"{name} (JPEG)" if train.jpeg else name,
        train.images,
        train.labels,
        None if test is None else test.images,
        None if test is None else test.labels,
        class_names,
        _groups(name, train.labels, train.coarse, class_names),
    )


def _cifar_source(name: str, folder: Path, files: dict[str, list[Path]]) -> Source:
    if not files["train"] or not files["test"]:
        lacking = "data_batch_1.bin ... (or train.bin)" if not files["train"] else "test_batch.bin (or test.bin)"
        raise DataError(f"{folder} lacks {lacking}")
    fine = files["train"][0].name == "train.bin"
    if name in ("cifar10", "cifar100") and fine != (name == "cifar100"):
        raise DataError(f"{folder} holds the binary files of {'CIFAR-100' if fine else 'CIFAR-10'}, not of {name}")
    x_train, y_train, coarse = read_cifar_binary(files["train"], fine=fine)
    x_test, y_test, _ = read_cifar_binary(files["test"], fine=fine)
    title = "CIFAR-100" if fine else "CIFAR-10"
    names = _fine_names(files["train"][0].parent) if fine else OBJECTS
    return Source(title, x_train, y_train, x_test, y_test, names, _groups(title, y_train, coarse, names))


def _fine_names(folder: Path) -> tuple[str, ...]:
    """CIFAR-100's class names, which lie beside its binary files as text; numbers where they do not."""
    text = folder / "fine_label_names.txt"
    names = text.read_text(encoding="utf-8", errors="replace").split() if text.is_file() else []
    return tuple(names) if len(names) == 100 else tuple(map(str, range(100)))


def _groups(
    name: str, labels: Array, coarse: Array | None, class_names: tuple[str, ...] | None
) -> tuple[int, ...] | None:
    """Coarse group of each class, from the two labels of every training point."""
    if coarse is None or labels.min() < 0:
        return None
    classes = int(labels.max()) + 1
    group = np.full(classes, -1, dtype=np.int64)
    group[labels] = coarse
    if (group[labels] != coarse).any():
        raise DataError(f"{name}: points of one class have different coarse labels; each class has one group")
    if (group < 0).any() or (class_names is not None and len(class_names) != classes):
        raise DataError(f"{name}: some class has no training point, so its coarse group is not known")
    return tuple(group.tolist())
