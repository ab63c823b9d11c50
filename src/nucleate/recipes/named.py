"""Recipes by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

Spec = TypeVar("Spec")


def named(recipes: Mapping[str, Callable[[], Spec]], name: str) -> Spec:
    """Spec of a named recipe.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> named({"one": lambda: 1}, "one")
    1
    """
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(recipes)}"
        raise ValueError(f"no recipe is named {name!r}; {hint}")
    return recipes[name]()
