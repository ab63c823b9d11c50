"""Data from a function of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nucleate.data.dataset import DataError, Dataset
from nucleate.data.finish import Source
from nucleate.functions import find_function as find_function

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
EXTRAS = ("class_names", "superclasses", "input_range", "name")


def from_function(name: str) -> Source:
    """Source that `package.module:function` returns when it is called without arguments.

    It may return `(x, y)`, `(x_train, y_train, x_test, y_test)`, a dict with these keys (and, if it likes, `name`,
    `class_names`, `superclasses`, `input_range`), or a `Dataset`.

    Raises:
        DataError: if it cannot be found, fails, or returns something else.
    """
    try:
        value = find_function(name)()
    except ValueError as error:
        raise DataError(str(error)) from error
    if isinstance(value, Dataset):
        value = {
            "x_train": value.train_inputs,
            "y_train": value.train_labels,
            "x_test": value.test_inputs,
            "y_test": value.test_labels,
            "class_names": value.class_names,
            "superclasses": value.superclasses,
            "input_range": value.input_range,
            "name": value.name,
        }
    if isinstance(value, tuple | list) and len(value) in (2, 4):
        return Source(name, *value)
    if isinstance(value, Mapping):
        return _of_mapping(name, value)
    got = f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__
    raise DataError(
        f"{name} returned {got}; it must return (x, y), (x_train, y_train, x_test, y_test) or a dict with these keys"
    )


def _of_mapping(name: str, value: Mapping[str, Any]) -> Source:
    given = dict(value)
    if {"x", "y"} <= set(given):
        given["x_train"], given["y_train"] = given.pop("x"), given.pop("y")
    if unknown := set(given) - {*ARRAYS, *EXTRAS}:
        raise DataError(
            f"{name} returned the unknown key {min(map(str, unknown))!r}; known: {', '.join((*ARRAYS, *EXTRAS))}"
        )
    if missing := {"x_train", "y_train"} - set(given):
        raise DataError(f"{name} returned no {min(missing)!r}")
    try:
        names, groups, limits = (given.get(k) for k in ("class_names", "superclasses", "input_range"))
        return Source(
            name=str(given.get("name", name)),
            **{k: given.get(k) for k in ARRAYS},
            class_names=None if names is None else tuple(map(str, names)),
            superclasses=None if groups is None else tuple(map(int, groups)),
            input_range=None if limits is None else (float(limits[0]), float(limits[1])),
        )
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(f"{name}: class_names, superclasses or input_range cannot be used: {error}") from None
