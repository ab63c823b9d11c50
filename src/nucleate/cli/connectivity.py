"""nucleate connectivity."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.connectivity import RECIPES


def connectivity(args: Sequence[str]) -> int:
    """From which step on is a network stable to the noise of its training?"""
    return run_recipe(
        "connectivity", args, RECIPES, default="digits-lenet", tell="nucleate.studies.connectivity:table", seeds="apart"
    )
