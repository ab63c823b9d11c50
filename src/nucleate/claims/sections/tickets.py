"""Claims about lottery tickets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from nucleate.claims.arms import MARGIN, Arm
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.verdict import Clause, mean_clause, paired_clause, ratio_clause
from nucleate.recipes import capacity, supermask, tickets
from nucleate.spec import CapacitySpec, SupermaskSpec, TicketsSpec

SECTION = "Lottery tickets"

# Levels were chosen on seeds from 100.
TICKET = {"quick": 11, "full": 9}
"""Level at which a ticket is judged: 9.3 % of the digits network's weights, 13.5 % of LeNet-300-100's."""
EARLY = {"quick": 9, "full": 8}
"""Level at which its speed is judged."""
OVERFITTING = 1e-2
"""Learning rate at which the digits network's validation loss turns early within the horizon."""
SPARSE = {"quick": 13, "full": 15}
"""Level at which one shot has lost two points."""
PARENTS = {"quick": {24: 3, 50: 7, 100: 11}, "full": {86: 3, 162: 6, 300: 9}}
"""Width of a parent -> level at which its ticket has the number of weights that the claim compares."""
LOST = 5.0
"""Points that random pruning must have lost before scores of an untrained network are told apart."""
METHODS = ("random", "magnitude", "snip", "grasp", "synflow")


def _ladder(tier: Tier, name: str, **ladder: Any) -> TicketsSpec:
    if tier == "full":
        spec = tickets.recipe("lenet-300-100")
        return replace(spec, recipe=f"{spec.recipe}-{name}", ladder=replace(spec.ladder, **ladder))
    spec = tickets.recipe("digits-lenet")
    return replace(spec, recipe=f"{spec.recipe}-{name}", ladder=replace(spec.ladder, **ladder))


def _controlled(tier: Tier) -> TicketsSpec:
    """The ladder beside the controls that a ticket must beat, and one shot trained on until both have cost the same."""
    return _ladder(
        tier,
        "controlled",
        rounds=SPARSE[tier],
        controls=("reinit", "random", "layer-shuffle", "dense-small", "one-shot", "one-shot-longer"),
        control_levels=(TICKET[tier],),
        one_shot_levels=(SPARSE[tier],),
        at_init=METHODS,
    )


def _fast(tier: Tier) -> TicketsSpec:
    """The ladder on which learning speed is judged."""
    level = EARLY[tier]
    spec = _ladder(tier, "fast", rounds=level, controls=("reinit",), control_levels=(level,))
    return spec if tier == "full" else replace(spec, train=replace(spec.train, lr=OVERFITTING))


def _parent(width: int, tier: Tier) -> TicketsSpec:
    spec = _ladder(tier, f"parent-{width}", rounds=PARENTS[tier][width], controls=(), control_levels=())
    return replace(spec, model=replace(spec.model, width=width))


def _arm_of_parent(rank: int) -> Arm:
    def parent(tier: Tier) -> TicketsSpec:
        return _parent(sorted(PARENTS[tier])[rank], tier)

    return parent


def _strong(tier: Tier) -> SupermaskSpec:
    """Subset sums, and masks on frozen weights."""
    if tier == "full":
        spec = supermask.recipe("mnist-lenet")
        return replace(spec, recipe="mnist-lenet-claim", candidates=supermask.recipe("digits-mlp").candidates)
    spec = supermask.recipe("digits-mlp")
    return replace(
        spec,
        recipe="digits-mlp-claim",
        candidates=(4, 6, 8, 10, 12, 14),
        targets=20,
        draws=10,
        widths=(128,),
        densities=(0.5,),
        train=replace(spec.train, epochs=8),
    )


def _subspaces(tier: Tier) -> CapacitySpec:
    """Random and mask subspaces of growing dimension."""
    if tier == "full":
        return capacity.recipe("mnist-lenet")
    spec = capacity.recipe("digits-lenet")
    return replace(spec, recipe="digits-lenet-claim", dimensions=(300,))


ARMS: dict[str, Arm] = {
    "subspaces": _subspaces,
    "ladder": _controlled,
    "ladder-fast": _fast,
    "parent-small": _arm_of_parent(0),
    "parent-middle": _arm_of_parent(1),
    "strong": _strong,
}


class Ladder:
    """The runs of an arm, whichever of them holds which seeds."""

    def __init__(self, evidence: Evidence, arm: str) -> None:
        self.runs = [loaded.run for loaded in evidence.arms[arm]]
        self.rows = [row for run in self.runs for row in run.records if row["metric"] not in ("loss", "accuracy")]
        self.seeds = sorted({row["seed"] for row in self.rows})

    def values(self, metric: str, level: int, arm: str = "ticket", **fields: Any) -> Floats:
        """(seeds,) values; nan where a seed has none."""
        wanted = {"metric": metric, "level": level, "arm": arm, **fields}
        found = {r["seed"]: float(r["value"]) for r in self.rows if all(r.get(k) == v for k, v in wanted.items())}
        return np.array([found.get(seed, math.nan) for seed in self.seeds])

    def correct(self, level: int, arm: str = "ticket") -> Floats:
        """(seeds, images): which test points are right at the step of the smallest validation loss."""
        held: dict[str, Any] = {}
        for run in self.runs:
            held |= run.tensors(f"level-{level:02d}-{arm}")
        return np.stack([held[f"{seed}/correct"].astype(np.float64) for seed in self.seeds])

    def above(self, name: str, level: int, arm: str, *, bound: float = 0.0) -> Clause:
        """Accuracy of the ticket minus that of an arm of its level."""
        return paired_clause(f"ticket - {name}", self.correct(level) - self.correct(level, arm), ">", bound)


def _matches(e: Evidence, tier: Tier) -> list[Clause]:
    ladder, level = Ladder(e, "ladder"), TICKET[tier]
    difference = ladder.correct(level) - ladder.correct(0)
    return [
        paired_clause(f"ticket - dense at level {level}", difference, ">=", -100 * MARGIN[tier]),
    ]


def _beats_reinit(e: Evidence, tier: Tier) -> list[Clause]:
    ladder, level = Ladder(e, "ladder"), TICKET[tier]
    return [
        ladder.above("fresh weights", level, "reinit"),
        ladder.above("random mask", level, "random"),
        ladder.above("shuffled mask", level, "layer-shuffle"),
    ]


def _learns_faster(e: Evidence, tier: Tier) -> list[Clause]:
    ladder, level = Ladder(e, "ladder-fast"), EARLY[tier]
    ticket, dense, fresh = (
        np.maximum(ladder.values("stop_step", at, arm), 1.0)
        for at, arm in ((level, "ticket"), (0, "ticket"), (level, "reinit"))
    )
    return [
        ratio_clause("step of the minimum, ticket over dense", ticket, dense, "<", 1.0),
        ratio_clause("step of the minimum, fresh weights over ticket", fresh, ticket, ">=", 2.0),
    ]


def _iterative(e: Evidence, tier: Tier) -> list[Clause]:
    ladder, level = Ladder(e, "ladder"), SPARSE[tier]
    lost = ladder.correct(0) - ladder.correct(level, "one-shot")
    return [
        paired_clause("one shot has lost", lost, ">=", 2.0),
        ladder.above("one shot of equal budget", level, "one-shot-longer"),
    ]


def _without_training(e: Evidence, tier: Tier) -> list[Clause]:
    ladder, level = Ladder(e, "ladder"), TICKET[tier]
    random = ladder.correct(level, "random-init")
    clauses = [paired_clause("random has lost", ladder.correct(0) - random, ">=", LOST)]
    for method in ("snip", "grasp", "synflow"):
        gap = ladder.correct(level, f"{method}-init") - random
        clauses.append(paired_clause(f"{method} - random", gap, ">", 0.0))
    emptied = ladder.values("emptied", level, "synflow-init")
    return [*clauses, mean_clause("layers that synflow empties", emptied, "<=", 0.0, unit="layers")]


def _large_then_sparse(e: Evidence, tier: Tier) -> list[Clause]:
    narrow, middle, wide = sorted(PARENTS[tier])
    ladder = Ladder(e, "ladder")
    tickets = {
        narrow: Ladder(e, "parent-small").correct(PARENTS[tier][narrow]),
        middle: Ladder(e, "parent-middle").correct(PARENTS[tier][middle]),
        wide: ladder.correct(PARENTS[tier][wide]),
    }
    return [
        ladder.above("small dense network", TICKET[tier], "dense-small"),
        paired_clause(f"ticket of width {middle} - {narrow}", tickets[middle] - tickets[narrow], ">", 0.0),
        paired_clause(f"ticket of width {wide} - {middle}", tickets[wide] - tickets[middle], ">", 0.0),
    ]


def _collapses(e: Evidence, tier: Tier) -> list[Clause]:
    ladder, level = Ladder(e, "ladder"), TICKET[tier]
    ticket, dense = (ladder.values("nc1", at, layer="penultimate") for at in (level, 0))
    difference = ladder.correct(level) - ladder.correct(0)
    return [
        paired_clause("ticket - dense", difference, ">=", -100 * MARGIN[tier]),
        ratio_clause("NC1, ticket over dense", ticket, dense, "<=", 2.0),
    ]


def _strong_tickets(e: Evidence, tier: Tier) -> list[Clause]:
    slopes, fits, shares = [], [], []
    for loaded in e.arms["strong"]:
        rows = loaded.run.records
        errors = [(r["candidates"], math.log10(r["value"])) for r in rows if r["metric"] == "subset_error"]
        n, log = (np.array(x) for x in zip(*errors, strict=True))
        slopes.append(float(np.polyfit(n, log, 1)[0]))
        fits.append(float(np.corrcoef(n, log)[0, 1] ** 2))
        best = {arm: max(r["value"] for r in rows if r.get("arm") == arm and r["metric"] == "accuracy")
                for arm in ("edge-popup", "trained")}  # fmt: skip
        shares.append(best["edge-popup"] / best["trained"])
    return [
        mean_clause("log10 error for each candidate more", slopes, "<", 0.0, unit="decades"),
        mean_clause("share of its variance that a straight line explains", fits, ">=", 0.95, unit="share"),
        mean_clause("edge-popup over trained accuracy", shares, ">=", 0.8, unit="share"),
    ]


def _low_dimensional(e: Evidence, tier: Tier) -> list[Clause]:
    shares = []
    for loaded in e.arms["subspaces"]:
        rows = loaded.run.select(metric="accuracy")
        dense = next(r["value"] for r in rows if r["arm"] == "dense")
        enough = [r["share"] for r in rows if r["arm"] == "random" and r["value"] >= 0.9 * dense]
        shares.append(min(enough, default=1.0))
    return [mean_clause("share of the weights' dimension that is enough", shares, "<", 0.02, unit="share")]


def _claim(
    id: str,
    sentence: str,
    source: str,
    criterion: str,
    control: str,
    judge: Callable[[Evidence, Tier], list[Clause]],
    *arms: str,
    figure: str = "tickets",
    budget: float = 0.0,
) -> Claim:
    return Claim(
        id=id,
        section=SECTION,
        sentence=sentence,
        source=source,
        criterion=criterion,
        control=control,
        figure=figure,
        arms=arms,
        judge=judge,
        budget=budget,
    )


CLAIMS = (
    _claim(
        "ticket-matches",
        "A sparse subnetwork with its original initial weights trains to the dense accuracy.",
        "Frankle, Carbin 2019",
        "at 9.3 % of the weights (digits; 13.5 % on MNIST) the ticket is not below dense by more than the margin",
        "the dense network of the same seed",
        _matches,
        "ladder",
        budget=20.0,
    ),
    _claim(
        "ticket-beats-reinit",
        "The same mask with new random weights does not.",
        "Frankle, Carbin 2019",
        "ticket above fresh weights, above a random mask of the same layer ratios and above the shuffled mask",
        "random re-initialisation; random mask of the same layer ratios; layer shuffle",
        _beats_reinit,
        "ladder",
    ),
    _claim(
        "ticket-learns-faster",
        "And it learns faster.",
        "Frankle, Carbin 2019",
        "smallest validation loss earlier than dense's, and with fresh weights at least 2x later than the ticket's",
        "dense; random re-initialisation",
        _learns_faster,
        "ladder-fast",
        budget=6.0,
    ),
    _claim(
        "iterative-beats-one-shot",
        "Iterative pruning finds smaller tickets than one shot.",
        "Frankle, Carbin 2019",
        "at the density where one shot has lost 2 points, the iterative ticket is above one shot of equal total budget",
        "one-shot pruning to the same counts, trained on until both have cost the same",
        _iterative,
        "ladder",
    ),
    _claim(
        "large-then-sparse",
        "Large networks make good small ones easier to find.",
        "Frankle, Carbin 2019",
        "ticket above the dense network of as many weights; equally large tickets improve with their parent's width",
        "dense network of as many weights; narrower parents",
        _large_then_sparse,
        "ladder",
        "parent-small",
        "parent-middle",
        budget=6.0,
    ),
    _claim(
        "low-dimensional-subspaces",
        "The space of weights is high-dimensional but holds low-dimensional subspaces with good solutions.",
        "Li et al. 2018",
        "90 % of the dense accuracy in a random affine subspace of a dimension below 2 % of the weights",
        "the whole network; as many single weights",
        _low_dimensional,
        "subspaces",
        figure="capacity",
        budget=10.0,
    ),
    _claim(
        "tickets-without-training",
        "Winning tickets can be found before training, and without data.",
        "Wang et al. 2020; Tanaka et al. 2020",
        "where random has lost 5 points, SNIP, GraSP and SynFlow at init each beat it, and SynFlow empties no layer",
        "random pruning at init; magnitude at init beside it",
        _without_training,
        "ladder",
    ),
    _claim(
        "strong-tickets",
        "A large random network already contains one that works, without training.",
        "Malach et al. 2020; Ramanujan et al. 2020",
        "log error of the best subset falls linearly in the candidates (R^2 >= 0.95); edge-popup >= 80 % of trained",
        "the trained network of the same width",
        _strong_tickets,
        "strong",
        figure="supermask",
        budget=5.0,
    ),
    _claim(
        "tickets-collapse",
        "A winning ticket collapses as its dense parent does.",
        "Papyan, Han, Donoho 2020; Frankle, Carbin 2019",
        "NC1 within 2x of dense at the recipe's density, where the ticket still matches",
        "the dense network of the same seed",
        _collapses,
        "ladder",
        figure="tickets-collapse",
    ),
)
