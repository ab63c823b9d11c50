"""nucleate bias."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.bias import RECIPES


def bias(args: Sequence[str]) -> int:
    """See which solution gradient descent picks: least norm, largest margin, edge of stability, low rank."""
    return run_recipe("bias", args, RECIPES, default="min-norm", tell="nucleate.studies.bias.tables:at_the_end")
