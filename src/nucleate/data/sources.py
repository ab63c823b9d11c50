"""Where points come from: a name, a path or a function of yours -> a data set in memory.

Images stay what they are, shares of full scale in [0, 1]; nothing is standardised, here or in the models. So an
attack's epsilon is a share of the input's full range, and distances between inputs are distances between pictures.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from nucleate.data.dataset import DataError, Dataset
from nucleate.data.finish import Source, finish
from nucleate.data.folders import DIGITS, data_root, read_file, read_folder, require_folder
from nucleate.data.functions import from_function
from nucleate.data.noise import class_counts, flip_labels, subset
from nucleate.data.synthetic import SYNTHETIC
from nucleate.data.text import TEXTS, is_text, load_text
from nucleate.functions import is_function_name
from nucleate.spec import DataSpec


def load(spec: DataSpec, root: Path | None = None) -> Dataset:
    """Data set that a spec asks for: read, checked, cut to size, its training labels made noisy.

    `spec.name` is a key of `SOURCES`, a path, or `package.module:function`. The same spec and files give the same
    bits. `root` defaults to the variable NUCLEATE_DATA, then to a folder in the user's cache.

    Raises:
        DataError: (a ValueError) for data that is missing, damaged or does not fit, or a spec that cannot be met.

    >>> data = load(DataSpec(name="digits", train_size=100, label_noise=0.1))
    >>> data.train_inputs.shape, int(data.corrupted.sum())
    (torch.Size([100, 1, 8, 8]), 10)
    """
    if is_text(spec.name):
        return load_text(spec, root)
    for field in ("train_size", "test_size"):
        size = getattr(spec, field)
        if size is not None and size < 1:
            raise DataError(f"data.{field} must be at least 1, not {size}")
    points = finish(_source(spec, data_root(root)))
    classes = len(points.class_names)
    x_train, clean = _cut(points.x_train, points.y_train, spec, classes, "train")
    x_test, y_test = _cut(points.x_test, points.y_test, spec, classes, "test")
    noisy = flip_labels(
        clean,
        spec.label_noise,
        num_classes=classes,
        generator=generator(spec.seed, "label noise"),
        kind=spec.noise_kind,
    )
    return Dataset(
        name=points.name,
        train_inputs=x_train,
        train_labels=noisy,
        clean_train_labels=clean,
        test_inputs=x_test,
        test_labels=y_test,
        class_names=points.class_names,
        superclasses=points.superclasses,
        input_range=points.input_range,
    )


def _cut(inputs: Tensor, labels: Tensor, spec: DataSpec, classes: int, what: str) -> tuple[Tensor, Tensor]:
    """The points of a split that the spec's size and imbalance leave."""
    available = torch.bincount(labels, minlength=classes).tolist()
    size, imbalance = (spec.train_size, spec.imbalance) if what == "train" else (spec.test_size, 1.0)
    counts = class_counts(available, size, imbalance, what=what)
    if counts == available:
        return inputs, labels
    kept = subset(labels, counts, generator=generator(spec.seed, f"{what} subset"))
    return inputs[kept], labels[kept]


def generator(seed: int, purpose: str) -> Generator:
    """Generator of its own for each seed and purpose, so that one option never moves the draws of another."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def digits(spec: DataSpec, root: Path) -> Source:
    """The 1,797 digits of 8 x 8 pixels that scikit-learn carries, in [0, 1] (Alpaydin, Kaynak 1998)."""
    # scikit-learn's data sets take half a second to import.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Source("digits", images.reshape(-1, 8, 8) / 16, labels, class_names=DIGITS, input_range=(0.0, 1.0))


def synthetic(name: str, spec: DataSpec, root: Path) -> Source:
    """Points of a synthetic source, as many as the spec asks for."""
    kind = SYNTHETIC[name]
    classes = len(kind.class_names)

    def split(what: str, size: int | None, default: int, imbalance: float) -> tuple[Tensor, Tensor]:
        counts = class_counts([size or default // classes] * classes, size, imbalance, what=what)
        draw = generator(spec.seed, f"{name} {what}")
        labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(counts))
        labels = labels[torch.randperm(len(labels), generator=draw)]
        return kind.points(labels, draw), labels

    x_train, y_train = split("train", spec.train_size, kind.train_size, spec.imbalance)
    x_test, y_test = split("test", spec.test_size, kind.test_size, 1.0)
    return Source(name, x_train, y_train, x_test, y_test, kind.class_names, kind.superclasses)


def stored(name: str, spec: DataSpec, root: Path) -> Source:
    """Files of a named source below the data root."""
    return read_folder(name, require_folder(name, root))


SOURCES: dict[str, Callable[[DataSpec, Path], Source]] = {
    "digits": digits,
    **{name: partial(synthetic, name) for name in SYNTHETIC},
    **{name: partial(stored, name) for name in ("mnist", "fashion", "cifar10", "cifar100")},
}
"""Every source that has a name; add a function of (spec, data root) to add one."""


def _source(spec: DataSpec, root: Path) -> Source:
    if spec.name in SOURCES:
        return SOURCES[spec.name](spec, root)
    if is_function_name(spec.name):
        return from_function(spec.name)
    path = Path(spec.name).expanduser()
    try:
        if path.is_dir():
            return read_folder(path.name, path)
        if path.is_file():
            return read_file(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if len(path.parts) > 1 or path.suffix:
        raise DataError(f"there is no file or folder {path}")
    near = difflib.get_close_matches(spec.name, SOURCES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DataError(
        f"no data source is named {spec.name!r}; {hint}There are {', '.join((*SOURCES, *TEXTS))}, "
        "a path to an IDX folder, parquet, .npz or .txt, and package.module:function"
    )
