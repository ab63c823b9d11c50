"""Specs to nested dicts, to TOML and to the digest that names a run, and back."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

SCHEMA_VERSION = 1
"""Part of every hash: a change in the meaning of a record or of a default raises it."""

Spec = TypeVar("Spec")


class SpecError(ValueError):
    """A spec that names an unknown field, or gives one a value of the wrong kind."""


def to_dict(spec: Any) -> dict[str, Any]:
    """Nested plain dict of a spec, tuples as lists, fields that are None left out.

    >>> from nucleate.spec import DataSpec
    >>> to_dict(DataSpec(name="blobs"))["name"]
    'blobs'
    >>> "train_size" in to_dict(DataSpec())
    False
    """
    out: dict[str, Any] = {}
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        if dataclasses.is_dataclass(value):
            out[f.name] = to_dict(value)
        elif value is not None:
            out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def from_dict(kind: type[Spec], values: Mapping[str, Any], *, where: str = "") -> Spec:
    """Spec of a nested dict; the inverse of `to_dict`.

    Raises:
        SpecError: for an unknown field (with the nearest name) or a value of the wrong type.

    >>> from nucleate.spec import TrainSpec
    >>> from_dict(TrainSpec, {"lr": 1}).lr
    1.0
    """
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
            raise SpecError(f"unknown field {name!r}{hint}")
        given[key] = _convert(hints[key], value, name)
    return kind(**given)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise SpecError(f"{name} must be a table, not {value!r}")
        return from_dict(hint, value, where=f"{name}.")
    if origin is types.UnionType:
        inner = next(a for a in args if a is not type(None))
        return None if value is None else _convert(inner, value, name)
    if origin is Literal:
        if value not in args:
            raise SpecError(f"{name} must be one of {', '.join(map(str, args))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{name} must be a list, not {value!r}")
        return tuple(_convert(args[0], v, name) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SpecError(f"{name} must be {hint.__name__}, not {value!r}")
    if hint is float and not math.isfinite(value):
        raise SpecError(f"{name} must be finite, not {value!r}")
    return value


def to_toml(spec: Any) -> str:
    """TOML text of a spec: its own fields first, then one table for each part.

    >>> from nucleate.spec import CollapseSpec
    >>> print(to_toml(CollapseSpec()).splitlines()[0])
    study = "collapse"
    """
    values = to_dict(spec)
    lines = [f"{k} = {_toml_value(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for key, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *(f"{k} = {_toml_value(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def from_toml(kind: type[Spec], path: Path) -> Spec:
    """Read a spec from a TOML file.

    Raises:
        SpecError: if the file cannot be read, is not TOML, or does not fit.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"cannot read a spec from {path}: {error}") from None
    return from_dict(kind, values)


def digest(spec: Any, **content: str) -> str:
    """Twelve hexadecimal digits that name a run: of the spec, the schema version and the digests of what it reads.

    >>> from nucleate.spec import CollapseSpec
    >>> digest(CollapseSpec(seed=0)) == digest(CollapseSpec(seed=1))
    False
    """
    text = json.dumps({"schema": SCHEMA_VERSION, "spec": to_dict(spec), "content": content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
