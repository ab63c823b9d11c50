"""Claims about which weights can go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from nucleate.claims.arms import MARGIN, Arm
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.verdict import Clause, equivalence, mean_clause, paired_clause
from nucleate.recipes import prune_stability
from nucleate.recipes.compare import recipe
from nucleate.spec import CompareSpec, DataSpec, ModelSpec, PruneStabilitySpec

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
LEVELS: dict[Tier, tuple[float, ...]] = {"quick": (0.5, 0.2, 0.05), "full": (0.5, 0.2, 0.02)}
"""Kept shares: untrained removal, the 80 to 90 % of the claim, and where random has lost five points or more."""
CHOSEN = {"quick": 0.02, "full": 0.01}
"""Kept share of the chosen layer in the place of the last of `LEVELS`: pruning one layer hurts less."""
ALL, MIDDLE, LAST = slice(None), slice(1, 2), slice(2, 3)
LOST = 5.0
"""Points that the random control must have lost for a comparison to tell anything."""


def _arm(method: str, levels: slice = ALL, *, chosen: bool = False) -> Arm:
    """One method at those of the levels that a claim asks about."""

    def pruned(tier: Tier) -> CompareSpec:
        spec = recipe("digits-mlp" if tier == "quick" else "mnist-lenet")
        layers = (FIRST,) if chosen else ()
        spec = replace(spec, densities=(CHOSEN[tier],) if chosen else LEVELS[tier][levels], robustness=0, timing=0)
        if tier == "quick":
            model, train = replace(spec.model, width=128), replace(spec.train, epochs=25)
            spec = replace(spec, recipe="digits-mlp-quick", model=model, train=train)
        return replace(spec, prune=replace(spec.prune, method=method, layers=layers))

    return pruned


LADDER = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
"""Kept shares between which a language model and an image classifier are told apart."""
GAIN = 0.99
"""Share of the gain over chance, in cross-entropy, that must be kept."""


def _ladder(recipe_of: dict[Tier, str], **quick: Any) -> Arm:
    """Magnitude pruning layer by layer without further training: the same budget for every network."""

    def pruned(tier: Tier) -> CompareSpec:
        spec = recipe(recipe_of[tier])
        if tier == "quick":
            spec = replace(spec, recipe=f"{spec.recipe}-quick", **quick)
        prune = replace(spec.prune, method="magnitude", scope="layer", epochs=0)
        return replace(spec, prune=prune, densities=LADDER, robustness=0, timing=0)

    return pruned


def _stability(tier: Tier) -> PruneStabilitySpec:
    """Every way to prune at one final density and one retraining budget; the controls tell why and are left out."""
    spec = prune_stability.recipe("digits" if tier == "quick" else "mnist")
    return replace(spec, recipe=f"{spec.recipe}-claim", stability=replace(spec.stability, noise=()))


ARMS: dict[str, Arm] = {
    "stability": _stability,
    "ladder-image": _ladder(
        {"quick": "digits-mlp", "full": "mnist-lenet"},
        model=ModelSpec(width=128, depth=2),
        train=replace(recipe("digits-mlp").train, epochs=25),
    ),
    "ladder-language": _ladder(
        {"quick": "bytes-transformer", "full": "bytes-transformer"},
        data=DataSpec(name="python-source", context=32, train_size=1500, test_size=200),
        model=ModelSpec(name="transformer", width=32, depth=2),
        train=replace(recipe("bytes-transformer").train, epochs=3, lr=5e-3),
    ),
    "prune-dense": _arm("dense", MIDDLE),
    **{f"prune-{m}": _arm(m) for m in ("random", "magnitude")},
    **{f"prune-{m}": _arm(m, LAST) for m in ("snip", "wanda", "synflow", "large_init")},
    **{f"prune-first-{m}": _arm(m, chosen=True) for m in ("random", "magnitude")},
}


def _correct(e: Evidence, arm: str, level: int, name: str = "test_correct") -> Floats:
    return e.arrays(arm, f"level-{level:02d}", name)


def _last(e: Evidence, tier: Tier, arm: str, name: str = "test_correct") -> Floats:
    """The same at the sparsest level of an arm."""
    return _correct(e, arm, len(ARMS[arm](tier).densities), name)


def _near_zero_weights_do_little(e: Evidence, tier: Tier) -> list[Clause]:
    whole = _correct(e, "prune-magnitude", 0)
    removed = _correct(e, "prune-magnitude", 1, "correct_before_training") - whole
    control = whole - _correct(e, "prune-random", 1, "correct_before_training")
    return [
        *equivalence(paired_clause, "smallest half removed, no training", removed, 100 * MARGIN[tier]),
        paired_clause("lost when the same share goes at random", control, ">=", LOST),
    ]


def _prunes_80_90(e: Evidence, tier: Tier) -> list[Clause]:
    dense = _last(e, tier, "prune-dense")
    change = _correct(e, "prune-magnitude", 2) - dense
    return equivalence(paired_clause, "80 % of the weights gone, minus dense", change, 100 * MARGIN[tier])


def _every_family_works(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    for arm, control, name in [
        *((f"prune-{score}", "prune-random", family) for family, score in FAMILIES.items()),
        ("prune-first-magnitude", "prune-first-random", "one chosen layer"),
    ]:
        gain = _last(e, tier, arm) - _last(e, tier, control)
        clauses.append(paired_clause(f"{name} minus random", gain, ">", 0.0))
    for control, name in (("prune-random", "random"), ("prune-first-random", "random, one chosen layer")):
        lost = _correct(e, control, 0) - _last(e, tier, control)
        clauses.append(paired_clause(f"lost by {name}", lost, ">=", LOST))
    return clauses


def _features_interpretable(e: Evidence, tier: Tier) -> list[Clause]:
    told = e.arrays("prune-magnitude", "level-00", "input_information")

    def correlation(arm: str) -> Floats:
        kept = _last(e, tier, arm, "first_layer_kept")
        seen = told[0] > 0
        return np.array([float(stats.spearmanr(k[seen], t[seen]).statistic) for k, t in zip(kept, told, strict=True)])

    return [
        mean_clause("rank correlation, trained", correlation("prune-magnitude"), ">", 0.5, unit="rho"),
        mean_clause("rank correlation, untrained net", correlation("prune-large_init"), "<", 0.2, unit="rho"),
        mean_clause("rank correlation, random mask", correlation("prune-random"), "<", 0.2, unit="rho"),
    ]


def _sparsity_kept(e: Evidence, arm: str) -> Floats:
    """(seeds,) largest sparsity up to which 99 % of the gain over chance is kept."""
    chance, dense = e.where(arm, "chance_loss"), e.where(arm, "loss", density=1.0)
    losses = np.stack([e.where(arm, "loss", density=d) for d in LADDER], axis=1)
    kept = (chance[:, None] - losses) / (chance - dense)[:, None] >= GAIN
    first_lost = np.where(kept.all(1), len(LADDER), kept.argmin(1))
    return np.array([0.0, *(1 - d for d in LADDER)])[first_lost]


def _language_models_prune_less(e: Evidence, tier: Tier) -> list[Clause]:
    image, language = _sparsity_kept(e, "ladder-image"), _sparsity_kept(e, "ladder-language")
    return [mean_clause("sparsity, image net minus language model", image - language, ">", 0.0, unit="share")]


def _unstable_pruning_generalises(e: Evidence, tier: Tier) -> list[Clause]:
    places, found = e.along("stability", "rank_correlation", "over")
    name = "rank correlation of instability and final accuracy, over"
    clauses = []
    for over, values in zip(places, found.T, strict=True):
        whole = over == "all"
        clause = mean_clause(f"{name} {'all arms' if whole else over}", values, ">", 0.0, unit="rho")
        clauses.append(replace(clause, judged=whole))
    return clauses


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
        budget=3.0,
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
        budget=1.0,
    ),
    Claim(
        id="language-models-prune-less",
        section=SECTION,
        sentence="Fewer of a language model's edges can go.",
        source="Frantar, Alistarh 2023",
        criterion="largest sparsity that keeps 99 % of the gain in cross-entropy over chance is smaller for the "
        "language model, neither being trained on",
        control="an image classifier pruned the same way",
        figure="compare",
        arms=("ladder-image", "ladder-language"),
        judge=_language_models_prune_less,
        budget=13.0,
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
        budget=5.0,
    ),
    Claim(
        id="unstable-pruning-generalises",
        section=SECTION,
        sentence="Pruning that costs more accuracy at its events goes with better generalisation.",
        source="Bartoldson et al. 2020",
        criterion="rank correlation, over methods, targets, shapes and numbers of events, of the mean drop of accuracy "
        "at pruning events with the final test accuracy above 0, at one final density and one retraining budget",
        control="the dense network; weights set to zero or moved at the same events and trained on",
        figure="prune-stability",
        arms=("stability",),
        judge=_unstable_pruning_generalises,
        budget=9.0,
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
        budget=1.0,
    ),
)
