"""nucleate supermask."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.supermask import RECIPES


def supermask(args: Sequence[str]) -> int:
    """Find what a random network already contains, without training a weight."""
    return run_recipe(
        "supermask", args, RECIPES, default="digits-mlp", tell="nucleate.studies.supermask:table", seeds="apart"
    )
