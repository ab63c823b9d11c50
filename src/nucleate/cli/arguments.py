"""What all commands share: where runs go, and words before options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from nucleate.spec import from_toml

Spec = TypeVar("Spec")

RUNS = Path("runs")
"""Where run folders are written unless told otherwise."""

On = Literal["here", "ray"]
EXECUTOR: dict[On, Literal["ray"] | None] = {"here": None, "ray": "ray"}
"""What `--on` names, as `run_specs` takes it."""


def parse(kind: type[Any], args: Sequence[str], prog: str, *, default: Any) -> Any:
    """Options of a command, from its dataclass; a wrong one ends the process with exit code 2."""
    return tyro.cli(kind, args=args, default=default, prog=prog)


def from_file(args: Sequence[str], kind: type[Spec]) -> Spec | None:
    """Spec that `--spec FILE` names, where its other options start from; none without that option.

    Raises:
        ValueError: if the file cannot be read or does not fit.
    """
    for i, word in enumerate(args):
        if word == "--spec" and i + 1 < len(args):
            return from_toml(kind, Path(args[i + 1]))
        if word.startswith("--spec="):
            return from_toml(kind, Path(word.removeprefix("--spec=")))
    return None


def positional(args: Sequence[str], default: str) -> tuple[str, list[str]]:
    """Split off the first argument, if it is not an option."""
    if args and not args[0].startswith("-"):
        return args[0], list(args[1:])
    return default, list(args)


def positionals(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off all arguments before the first option."""
    count = next((i for i, a in enumerate(args) if a.startswith("-")), len(args))
    return list(args[:count]), list(args[count:])
