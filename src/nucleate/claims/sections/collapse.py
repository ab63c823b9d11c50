"""Claims about neural collapse."""

from __future__ import annotations

import numpy as np

from nucleate.claims.arms import MARGIN
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.verdict import Clause, equivalence, mean_clause, paired_clause, ratio_clause

BOUNDS = {"nc1": 0.02, "nc2_equinorm": 0.1, "nc2_equiangle": 0.1, "nc3": 0.03}
"""Largest value at the end, stated with the recipes."""

EFFECTIVE_DEPTH_ERROR = 0.01
"""Nearest-centre training error at which a layer counts as collapsed."""

PAPYAN = "Papyan, Han, Donoho 2020"


def _zero_end(e: Evidence, metric: str, arm: str = "main", *, layer: str = "penultimate") -> tuple[Floats, Floats]:
    return e.values(arm, metric, "zero", layer=layer), e.values(arm, metric, "end", layer=layer)


def _softmax_vertices(e: Evidence, tier: Tier) -> list[Clause]:
    far, mean = "vertex_distance_max", "vertex_distance_mean"
    end = e.values("main", far, "end", layer="")
    weak = _zero_end(e, mean, "weak-decay", layer="")
    return [
        mean_clause("farthest point's distance to its vertex at the end", end, "<=", 0.1),
        ratio_clause("its fall from zero error", e.values("main", far, "zero", layer=""), end, ">=", 3.0),
        ratio_clause("fall of the mean distance at weak decay", *weak, ">=", 10.0),
    ]


def _logit_clusters(e: Evidence, tier: Tier) -> list[Clause]:
    return [
        ratio_clause("fall of within over between", *_zero_end(e, "logit_ratio", layer=""), ">=", 3.0),
        mean_clause("mean logit norm at the end", e.values("main", "logit_norm", "end", layer=""), ">", 1.0),
    ]


def _nc1(e: Evidence, tier: Tier) -> list[Clause]:
    zero, end = _zero_end(e, "nc1")
    return [
        ratio_clause("fall from zero error", zero, end, ">=", 5.0),
        mean_clause("value at the end", end, "<=", BOUNDS["nc1"]),
    ]


def _nc2(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    for metric, name in (("nc2_equinorm", "equal norms"), ("nc2_equiangle", "equal angles")):
        for suffix, of in (("", "means"), ("_weights", "weights")):
            zero, end = _zero_end(e, metric + suffix)
            clauses.append(ratio_clause(f"{name} of {of}, fall", zero, end, ">", 1.0))
            clauses.append(mean_clause(f"{name} of {of} at the end", end, "<=", BOUNDS[metric]))
    return clauses


def _nc3(e: Evidence, tier: Tier) -> list[Clause]:
    zero, end = _zero_end(e, "nc3")
    return [
        ratio_clause("fall from zero error", zero, end, ">=", 3.0),
        mean_clause("value at the end", end, "<=", BOUNDS["nc3"]),
    ]


def _nc4(e: Evidence, tier: Tier) -> list[Clause]:
    zero, end = _zero_end(e, "nc4")
    return [
        mean_clause("train mismatch at the end", end, "<=", 0.001, unit="share"),
        mean_clause("change since zero error", end - zero, "<=", 0.0, unit="share"),
    ]


def _equal_boundary_distance(e: Evidence, tier: Tier) -> list[Clause]:
    return [ratio_clause("fall of the relative spread", *_zero_end(e, "boundary_spread"), ">=", 2.0)]


def _simple_head_suffices(e: Evidence, tier: Tier) -> list[Clause]:
    error = 1 - e.by_layer("main", "ncc_accuracy", "end", split="train")
    depth = np.where((error <= EFFECTIVE_DEPTH_ERROR).any(1), (error <= EFFECTIVE_DEPTH_ERROR).argmax(1), -1)
    # The last two columns are the classifier's input and its output.
    gone = np.where(depth >= 0, error.shape[1] - 1 - depth, 0)
    whole = e.images("main", "test_correct", "end")
    cut, early = (e.images("main", "ncc_correct", when) for when in ("end", "start"))
    rows = np.arange(len(depth))
    head = cut[rows, np.maximum(depth, 0)] - whole
    trained_over_untrained = (cut - early)[rows, np.maximum(depth, 0)]
    return [
        *equivalence(paired_clause, "test accuracy of the cut net minus the whole", head, 100 * MARGIN[tier]),
        mean_clause("layers gone", gone, ">=", 1.0, unit="layers"),
        paired_clause("cut net minus the same cut before training", trained_over_untrained, ">", 0.0),
    ]


def _collapse_generalises(e: Evidence, tier: Tier) -> list[Clause]:
    end, zero = (e.images("main", "test_correct", when) for when in ("end", "zero"))
    return [paired_clause("test accuracy at the end minus at zero error", end - zero, ">=", 0.0)]


def _collapse_robust(e: Evidence, tier: Tier) -> list[Clause]:
    end, zero = (e.images("main", "pgd_correct", when) for when in ("end", "zero"))
    far, near = (e.values("main", "min_perturbation", when, layer="", split="test") for when in ("end", "zero"))
    return [
        paired_clause("PGD accuracy at the end minus at zero error", end - zero, ">", 0.0),
        ratio_clause("smallest perturbation, end over zero error", far, near, ">", 1.0),
    ]


CLAIMS = (
    Claim(
        id="softmax-vertices",
        section="Neural collapse",
        sentence="Past zero error all training points converge to the vertices of the standard simplex.",
        source=PAPYAN,
        criterion="farthest point within 0.1 of its vertex and at a third or less of its distance at zero error; "
        "at weak decay the mean falls 10x or more",
        control="strong against weak weight decay",
        figure="simplex",
        arms=("main", "weak-decay"),
        judge=_softmax_vertices,
        budget=14.0,
    ),
    Claim(
        id="logit-clusters",
        section="Neural collapse",
        sentence="The logits cluster by class too, at larger values than unit vectors.",
        source=PAPYAN,
        criterion="within/between falls 3x or more from zero error to the end; norms exceed 1",
        control="the values at zero error",
        figure="logits",
        arms=("main",),
        judge=_logit_clusters,
        budget=0.0,
    ),
    Claim(
        id="nc1",
        section="Neural collapse",
        sentence="NC1: within-class variability collapses.",
        source=PAPYAN,
        criterion=f"falls 5x or more from zero error and ends at most at {BOUNDS['nc1']}",
        control="the value at zero error",
        figure="nc",
        arms=("main",),
        judge=_nc1,
        budget=0.0,
    ),
    Claim(
        id="nc2",
        section="Neural collapse",
        sentence="NC2: class means form an equiangular tight frame.",
        source=PAPYAN,
        criterion=f"equinorm and equiangle of means and weights each fall and end at most at {BOUNDS['nc2_equinorm']}",
        control="the values at zero error",
        figure="nc",
        arms=("main",),
        judge=_nc2,
        budget=0.0,
    ),
    Claim(
        id="nc3",
        section="Neural collapse",
        sentence="NC3: classifier rows align with class means.",
        source=PAPYAN,
        criterion=f"squared Frobenius distance falls 3x or more and ends at most at {BOUNDS['nc3']}",
        control="the value at zero error",
        figure="nc",
        arms=("main",),
        judge=_nc3,
        budget=0.0,
    ),
    Claim(
        id="nc4",
        section="Neural collapse",
        sentence="NC4: classification becomes nearest class centre.",
        source=PAPYAN,
        criterion="train mismatch at the end at most 0.001 and not above its value at zero error",
        control="the value at zero error",
        figure="nc",
        arms=("main",),
        judge=_nc4,
        budget=0.0,
    ),
    Claim(
        id="equal-boundary-distance",
        section="Neural collapse",
        sentence="All points of a class end at a similar distance from their class's decision boundary.",
        source=PAPYAN,
        criterion="relative spread of the signed distance falls 2x or more",
        control="the value at zero error",
        figure="nc",
        arms=("main",),
        judge=_equal_boundary_distance,
        budget=0.0,
    ),
    Claim(
        id="simple-head-suffices",
        section="Neural collapse",
        sentence="Data reduced to clusters need only a simple classifier in the final layers.",
        source="Galanti 2022",
        criterion="cut at the effective depth and classified by nearest class centre, test accuracy is equivalent "
        "to the whole net's, with at least one layer gone",
        control="the same cut of the untrained net",
        figure="depth",
        arms=("main",),
        judge=_simple_head_suffices,
        budget=0.0,
    ),
    Claim(
        id="collapse-generalises",
        section="Neural collapse",
        sentence="Training past zero error helps the test accuracy.",
        source=PAPYAN,
        criterion="test accuracy at the end at least that at zero error",
        control="the value at zero error",
        figure="accuracy",
        arms=("main",),
        judge=_collapse_generalises,
        budget=0.0,
    ),
    Claim(
        id="collapse-robust",
        section="Neural collapse",
        sentence="Training past zero error helps robustness.",
        source=PAPYAN,
        criterion="PGD accuracy and the smallest adversarial perturbation larger at the end than at zero error",
        control="the values at zero error",
        figure="accuracy",
        arms=("main",),
        judge=_collapse_robust,
        budget=0.0,
    ),
)
