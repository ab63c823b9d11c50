"""Claims about weight distributions and pruning."""

from __future__ import annotations

from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence
from nucleate.claims.verdict import Clause, mean_clause


def _most_weights_near_zero(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    for metric, name in (("near_zero_share", "share of weights near zero"), ("gini", "Gini of their size")):
        end, start = (e.values("main", metric, when, layer="", split="") for when in ("end", "start"))
        clauses.append(mean_clause(f"{name}, end minus start", end - start, ">", 0.0, unit="share"))
    return clauses


CLAIMS = (
    Claim(
        id="most-weights-near-zero",
        section="Weight distributions and pruning",
        sentence="After training a large share of weights is close to zero, a small share far from it.",
        source="Han et al. 2015",
        criterion="share below 0.1 of the layer's initial std, and Gini of the sizes, both rise at the recipe's decay",
        control="the same net at initialisation",
        figure="weights",
        arms=("main", "weak-decay"),
        judge=_most_weights_near_zero,
        budget=0.0,
    ),
)
