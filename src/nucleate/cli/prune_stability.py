"""nucleate prune-stability."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.prune_stability import RECIPES


def prune_stability(args: Sequence[str]) -> int:
    """Does pruning that disturbs a network more make it generalise better?"""
    return run_recipe("prune-stability", args, RECIPES, default="digits", tell="nucleate.studies.prune_stability:table")
