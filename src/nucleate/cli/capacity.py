"""nucleate capacity."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.capacity import RECIPES


def capacity(args: Sequence[str]) -> int:
    """In how few directions of its weights can a network be trained?"""
    return run_recipe(
        "capacity", args, RECIPES, default="digits-lenet", tell="nucleate.studies.capacity:table", seeds="apart"
    )
