"""Claims about which weights can go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from nucleate.claims.arms import MARGIN, Arm
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.verdict import Clause, equivalence, mean_clause, paired_clause
from nucleate.recipes.compare import recipe
from nucleate.spec import CompareSpec

SECTION = "Weight distributions and pruning"

FAMILIES = {
    "magnitude": "magnitude",
    "gradient": "snip",
    "activation": "wanda",
    "data-free": "synflow",
}
"""Family of criteria -> the score that stands for it."""
FIRST = "hidden.0*"
"""The layer that "only chosen layers" prunes."""
LEVELS = {"quick": (0.5, 0.2, 0.05), "full": (0.5, 0.2, 0.02)}
"""Kept shares: untrained removal, the 80 to 90 % of the claim, and where random has lost five points or more."""
CHOSEN = {"quick": 0.02, "full": 0.01}
"""Kept share of the chosen layer in the place of the last of `LEVELS`: pruning one layer hurts less."""
LOST = 5.0
"""Points that the random control must have lost for a comparison to tell anything."""


def _arm(method: str, *, chosen: bool = False) -> Arm:
    def pruned(tier: Tier) -> CompareSpec:
        spec = recipe("digits-mlp" if tier == "quick" else "mnist-lenet")
        layers = (FIRST,) if chosen else ()
        last = CHOSEN[tier] if chosen else LEVELS[tier][-1]
        spec = replace(spec, densities=(*LEVELS[tier][:-1], last), robustness=0)
        if tier == "quick":
            model, train = replace(spec.model, width=128), replace(spec.train, epochs=25)
            spec = replace(spec, recipe="digits-mlp-quick", model=model, train=train)
        return replace(spec, prune=replace(spec.prune, method=method, layers=layers))

    return pruned


ARMS: dict[str, Arm] = {
    **{f"prune-{m}": _arm(m) for m in ("dense", "random", *FAMILIES.values(), "large_init")},
    **{f"prune-first-{m}": _arm(m, chosen=True) for m in ("random", "magnitude")},
}


def _correct(e: Evidence, arm: str, level: int, name: str = "test_correct") -> Floats:
    return e.arrays(arm, f"level-{level:02d}", name)


def _near_zero_weights_do_little(e: Evidence, tier: Tier) -> list[Clause]:
    whole = _correct(e, "prune-magnitude", 0)
    removed = _correct(e, "prune-magnitude", 1, "correct_before_training") - whole
    control = whole - _correct(e, "prune-random", 1, "correct_before_training")
    return [
        *equivalence(paired_clause, "smallest half removed, no training", removed, 100 * MARGIN[tier]),
        paired_clause("lost when the same share goes at random", control, ">=", LOST),
    ]


def _prunes_80_90(e: Evidence, tier: Tier) -> list[Clause]:
    dense = _correct(e, "prune-dense", 2)
    change = _correct(e, "prune-magnitude", 2) - dense
    return equivalence(paired_clause, "80 % of the weights gone, minus dense", change, 100 * MARGIN[tier])


def _every_family_works(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    for arm, control, name in [
        *((f"prune-{score}", "prune-random", family) for family, score in FAMILIES.items()),
        ("prune-first-magnitude", "prune-first-random", "one chosen layer"),
    ]:
        gain = _correct(e, arm, 3) - _correct(e, control, 3)
        clauses.append(paired_clause(f"{name} minus random", gain, ">", 0.0))
    for control, name in (("prune-random", "random"), ("prune-first-random", "random, one chosen layer")):
        lost = _correct(e, control, 0) - _correct(e, control, 3)
        clauses.append(paired_clause(f"lost by {name}", lost, ">=", LOST))
    return clauses


def _features_interpretable(e: Evidence, tier: Tier) -> list[Clause]:
    told = e.arrays("prune-magnitude", "level-00", "input_information")

    def correlation(arm: str) -> Floats:
        kept = e.arrays(arm, "level-03", "first_layer_kept")
        seen = told[0] > 0
        return np.array([float(stats.spearmanr(k[seen], t[seen]).statistic) for k, t in zip(kept, told, strict=True)])

    return [
        mean_clause("rank correlation, trained", correlation("prune-magnitude"), ">", 0.5, unit="rho"),
        mean_clause("rank correlation, untrained net", correlation("prune-large_init"), "<", 0.2, unit="rho"),
        mean_clause("rank correlation, random mask", correlation("prune-random"), "<", 0.2, unit="rho"),
    ]


CLAIMS = (
    Claim(
        id="near-zero-weights-do-little",
        section=SECTION,
        sentence="Removing the weights near zero changes little.",
        source="Han et al. 2015",
        criterion="held-out accuracy equivalent with the smallest half of the weights gone and no training, where the "
        "same share at random has lost five points or more",
        control="the same share at random",
        figure="compare",
        arms=("prune-magnitude", "prune-random"),
        judge=_near_zero_weights_do_little,
        budget=20.0,
    ),
    Claim(
        id="prunes-80-90",
        section=SECTION,
        sentence="80 to 90 % of an image classifier's edges can go at comparable accuracy.",
        source="Han et al. 2015",
        criterion="held-out accuracy equivalent to dense at 20 % kept, after the same further training",
        control="the dense network with the same further training",
        figure="compare",
        arms=("prune-dense", "prune-magnitude"),
        judge=_prunes_80_90,
        budget=5.0,
    ),
    Claim(
        id="every-family-works",
        section=SECTION,
        sentence="Magnitude, gradient, activation and data-free criteria, and pruning only chosen layers, all work.",
        source="Blalock et al. 2020",
        criterion="each above random where random has lost five points or more, at equal further training",
        control="random masks with the same further training",
        figure="compare",
        arms=(*(f"prune-{m}" for m in ("random", *FAMILIES.values())), "prune-first-magnitude", "prune-first-random"),
        judge=_every_family_works,
        budget=25.0,
    ),
    Claim(
        id="features-interpretable",
        section=SECTION,
        sentence="Important features are found: the surviving weights read the inputs that tell the classes apart.",
        source="Frankle, Carbin 2019",
        criterion="rank correlation, over inputs, of surviving first-layer weights with the share of the input's "
        "variance between classes: above 0.5 for the trained net, below 0.2 for the controls",
        control="the untrained net's largest weights; a random mask",
        figure="compare",
        arms=("prune-magnitude", "prune-large_init", "prune-random"),
        judge=_features_interpretable,
        budget=5.0,
    ),
)
