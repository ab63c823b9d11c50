"""nucleate memorise."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.recipe_command import run_recipe
from nucleate.recipes.memorise import RECIPES


def memorise(args: Sequence[str]) -> int:
    """Train on labels of which more and more are random: what is fitted, how long it takes, what it costs."""
    return run_recipe("memorise", args, RECIPES, default="digits", tell="nucleate.studies.memorise:along_noise")
