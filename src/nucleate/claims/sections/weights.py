"""Claims about weight distributions and pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nucleate.claims.arms import WEAK_DECAY, Arm, bare, main
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence
from nucleate.claims.verdict import Clause, mean_clause
from nucleate.spec import CollapseSpec


def _glorot(decay: float | None) -> Callable[[Tier], CollapseSpec]:
    def glorot_init(tier: Tier) -> CollapseSpec:
        """The main network from Glorot's initial weights; half the epochs in the quick tier."""
        spec = main(tier)
        train = spec.train if decay is None else replace(spec.train, weight_decay=decay)
        return replace(
            spec,
            model=replace(spec.model, init="glorot"),
            train=replace(train, epochs=train.epochs // 2 if tier == "quick" else train.epochs),
            measure=bare(spec.measure),
        )

    return glorot_init


ARMS: dict[str, Arm] = {"glorot-init": _glorot(None), "glorot-init-weak-decay": _glorot(WEAK_DECAY)}


def _most_weights_near_zero(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    for arm, law, decay in (
        ("main", "He", "the recipe's"),
        ("glorot-init", "Glorot", "the recipe's"),
        ("weak-decay", "He", "weak"),
        ("glorot-init-weak-decay", "Glorot", "weak"),
    ):
        for metric, name in (("near_zero_share", "share of weights near zero"), ("gini", "Gini of their size")):
            end, start = (e.values(arm, metric, when, layer="", split="") for when in ("end", "start"))
            label = f"{name}, end minus start ({law} start, {decay} decay)"
            clause = mean_clause(label, end - start, ">", 0.0, unit="share")
            clauses.append(replace(clause, judged=decay != "weak"))
    return clauses


CLAIMS = (
    Claim(
        id="most-weights-near-zero",
        section="Weight distributions and pruning",
        sentence="After training a large share of weights is close to zero, a small share far from it.",
        source="Han et al. 2015",
        criterion="share below 0.1 of the layer's initial std, and Gini of the sizes, both rise at the recipe's decay, "
        "from He's and from Glorot's initial weights",
        control="the same net at initialisation; the same at weak decay, shown beside",
        figure="weights",
        arms=("main", "weak-decay", *ARMS),
        judge=_most_weights_near_zero,
        budget=16.0,
    ),
)
