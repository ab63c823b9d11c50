"""All claims and all experiments, by name; the numbers of a claim were fixed before its runs."""

from __future__ import annotations

from nucleate.claims import arms
from nucleate.claims.arms import Arm
from nucleate.claims.claim import Claim
from nucleate.claims.sections import (
    collapse,
    descent,
    embeddings,
    overparameterised,
    pruning,
    regimes,
    robustness,
    sparsity,
    tickets,
    weights,
)

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for section in (
        overparameterised,
        descent,
        sparsity,
        regimes,
        embeddings,
        collapse,
        weights,
        tickets,
        pruning,
        robustness,
    )
    for claim in section.CLAIMS
}
"""Claims of every section, in the order of the subject."""

ARMS: dict[str, Arm] = {
    **arms.ARMS,
    **overparameterised.ARMS,
    **descent.ARMS,
    **sparsity.ARMS,
    **regimes.ARMS,
    **embeddings.ARMS,
    **pruning.ARMS,
    **tickets.ARMS,
    **weights.ARMS,
}
"""Experiments by name. Claims share them, so each runs once."""
