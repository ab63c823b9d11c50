"""nucleate lazy."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.lazy import RECIPES


def lazy(args: Sequence[str]) -> int:
    """Widen a shallow network step by step until it trains like its neural tangent kernel."""
    return run_recipe("lazy", args, RECIPES, default="digits", tell="nucleate.studies.lazy:ladder_table")
