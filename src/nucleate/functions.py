"""`package.module:function` -> the function: how a user's own parts come in."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function_name(name: str) -> bool:
    """Whether a name has the form `package.module:function`.

    >>> is_function_name("mine.nets:small"), is_function_name("digits")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


def find_function(name: str) -> Callable[..., Any]:
    """Function that `package.module:function` names; the current folder is searched before the installed packages.

    Whatever it raises when it is called comes as a ValueError that names it.

    Raises:
        ValueError: if the name has another form, the module cannot be imported, or it has no such function.

    >>> find_function("math:gcd")(12, 18)
    6
    """
    if not is_function_name(name):
        raise ValueError(f"{name!r} does not name a function: write package.module:function")
    module_name, attribute = name.split(":")
    with _current_folder_first():
        try:
            module = importlib.import_module(module_name)
        # Importing runs the user's code, which may raise anything.
        except Exception as error:
            raise ValueError(f"cannot import {module_name!r} of {name!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        what = "has no" if function is None else "has no callable"
        raise ValueError(f"module {module_name!r} {what} {attribute!r}, which {name!r} asks for")

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        # The function is the user's and may raise anything.
        except Exception as error:
            raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error

    return called


@contextmanager
def _current_folder_first() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
