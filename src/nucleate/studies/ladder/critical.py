"""How far an untrained network can be pruned by a score before a layer is empty (Tanaka et al. 2020)."""

from __future__ import annotations

from nucleate.studies.ladder import masks as rungs
from nucleate.studies.ladder.arms import Arms

TOLERANCE = 0.01
"""Relative width of the interval that the search ends with."""


def critical_density(arms: Arms, method: str) -> float:
    """Largest density, within one per cent, at which a score of the untrained network leaves a layer empty.

    Found by halving the interval of kept counts; with L layers a layer must be empty below L weights, so that the
    smallest possible value is (L - 1) / weights. A score that shares weights out over layers as the largest weights
    lie (magnitude) or as chance has it comes close to that or not, SynFlow should.
    """
    weights = rungs.prunable(arms.dense)
    total = sum(w.numel() for w in weights.values())
    empty, whole = len(weights) - 1, total
    while whole - empty > max(1, TOLERANCE * empty):
        kept = (empty + whole) // 2
        if arms.at_init(method, kept).emptied:
            empty = kept
        else:
            whole = kept
    return empty / total
