"""nucleate descent."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.descent import RECIPES


def descent(args: Sequence[str]) -> int:
    """Fit a family of models from too small to far too large and watch the test error fall, rise and fall."""
    return run_recipe(
        "descent", args, RECIPES, default="digits-features", tell="nucleate.studies.descent.tables:along_width"
    )
