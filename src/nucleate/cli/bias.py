"""nucleate bias."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.cli.seeds_inside import run_recipe
from nucleate.recipes.bias import RECIPES


def bias(args: Sequence[str]) -> int:
    """See which solution gradient descent picks: least norm, largest margin, edge of stability, low rank."""
    from nucleate.studies.bias.tables import at_the_end

    return run_recipe("bias", args, RECIPES, default="min-norm", tell=at_the_end)
