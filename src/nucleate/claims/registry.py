"""The claims that are tried so far, by id; their numbers were fixed before the runs."""

from __future__ import annotations

import math

import numpy as np

from nucleate.claims.arms import WIDTHS
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.verdict import Clause, equivalence, mean_clause, paired_clause, ratio_clause

MARGIN = {"quick": 0.010, "full": 0.003}
"""Accuracy that counts as no difference: one point, and 0.3 points."""

BOUNDS = {"nc1": 0.02, "nc2_equinorm": 0.1, "nc2_equiangle": 0.1, "nc3": 0.03}
"""Largest value at the end, stated with the recipes."""

EFFECTIVE_DEPTH_ERROR = 0.01
"""Nearest-centre training error at which a layer counts as collapsed."""

OVER = "Over-parameterised networks"
LAYERS = "Embeddings, layer by layer"
COLLAPSE = "Neural collapse"
WEIGHTS = "Weight distributions and pruning"
PAPYAN = "Papyan, Han, Donoho 2020"


def _zero_end(e: Evidence, metric: str, arm: str = "main", *, layer: str = "penultimate") -> tuple[Floats, Floats]:
    return e.values(arm, metric, "zero", layer=layer), e.values(arm, metric, "end", layer=layer)


def _zero_error(e: Evidence, tier: Tier) -> list[Clause]:
    loss = e.values("main", "loss", "end", layer="") / math.log(10)
    return [
        mean_clause("training error at the end", e.values("main", "error", "end", layer=""), "<=", 0.0),
        mean_clause("cross-entropy over its chance value", loss, "<", 0.01),
    ]


def _points_in_cells(e: Evidence, tier: Tier) -> list[Clause]:
    shares = np.stack([e.values(f"width-{w}", "pattern_share", "end", layer="") for w in WIDTHS], axis=1)
    return [
        mean_clause("smallest step to the next width", np.diff(shares, axis=1).min(1), ">=", -0.01, unit="share"),
        mean_clause("share at the widest", shares[:, -1], ">", 0.95, unit="share"),
        mean_clause("widest minus narrowest", shares[:, -1] - shares[:, 0], ">", 0.0, unit="share"),
    ]


def _clusters_with_depth(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    chi = e.by_layer("superclasses", "chi", "end")[:, :-1]
    clauses.append(mean_clause("synthetic: chi(penultimate) - chi(input)", chi[:, -1] - chi[:, 0], ">", 0.1))
    for arm, name in (("superclasses", "synthetic"), ("main", "images")):
        end, start = (e.by_layer(arm, "chi", when)[:, :-1] for when in ("end", "start"))
        clauses.append(mean_clause(f"{name}: trained - untrained, penultimate", end[:, -1] - start[:, -1], ">", 0.0))
        steps = np.diff(end, axis=1).min(1)
        clauses.append(mean_clause(f"{name}: smallest step between layers", steps, ">=", -MARGIN[tier]))
    return clauses


def _nucleation(e: Evidence, tier: Tier) -> list[Clause]:
    coarse, fine = (e.by_layer("superclasses", f"ari_{kind}", "end") for kind in ("coarse", "fine"))
    earlier = fine.argmax(1) - coarse.argmax(1)
    return [mean_clause("layers between the coarse and the fine peak", earlier, ">", 0.0, unit="layers")]


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


def _most_weights_near_zero(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    for metric, name in (("near_zero_share", "share of weights near zero"), ("gini", "Gini of their size")):
        end, start = (e.values("main", metric, when, layer="", split="") for when in ("end", "start"))
        clauses.append(mean_clause(f"{name}, end minus start", end - start, ">", 0.0, unit="share"))
    return clauses


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        Claim(
            id="zero-error",
            section=OVER,
            sentence="A network with more parameters than points drives its training loss to almost zero.",
            source="Zhang et al. 2017",
            criterion="training error 0 and cross-entropy below 1 % of its chance value ln C",
            control="chance: cross-entropy ln C",
            figure="accuracy",
            arms=("main",),
            judge=_zero_error,
            budget=60.0,
        ),
        Claim(
            id="points-in-cells",
            section=OVER,
            sentence="A large network isolates points into cells, each mapped to its class.",
            source="Montufar et al. 2014",
            criterion="share of training points with an activation pattern of their own rises with width "
            "and ends above 0.95",
            control="a narrow net",
            figure="cells",
            arms=tuple(f"width-{w}" for w in WIDTHS),
            judge=_points_in_cells,
            budget=30.0,
        ),
        Claim(
            id="clusters-with-depth",
            section=LAYERS,
            sentence="Scattered inputs become class clusters layer by layer.",
            source="Doimo et al. 2020",
            criterion="held-out chi(penultimate) - chi(input) > 0.1 on the synthetic task, above the untrained "
            "net's on both, never falling by more than the margin between layers",
            control="the untrained net",
            figure="chi",
            arms=("superclasses", "main"),
            judge=_clusters_with_depth,
            budget=30.0,
        ),
        Claim(
            id="nucleation",
            section=LAYERS,
            sentence="Coarse groups form before fine classes; each layer is another probability density.",
            source="Doimo et al. 2020",
            criterion="density peaks agree best (ARI) with the coarse groups at an earlier layer than with the classes",
            control="the same peaks against the fine classes",
            figure="chi",
            arms=("superclasses",),
            judge=_nucleation,
            budget=0.0,
        ),
        Claim(
            id="softmax-vertices",
            section=COLLAPSE,
            sentence="Past zero error all training points converge to the vertices of the standard simplex.",
            source=PAPYAN,
            criterion="farthest point within 0.1 of its vertex and at a third or less of its distance at zero error; "
            "at weak decay the mean falls 10x or more",
            control="strong against weak weight decay",
            figure="simplex",
            arms=("main", "weak-decay"),
            judge=_softmax_vertices,
            budget=30.0,
        ),
        Claim(
            id="logit-clusters",
            section=COLLAPSE,
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
            section=COLLAPSE,
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
            section=COLLAPSE,
            sentence="NC2: class means form an equiangular tight frame.",
            source=PAPYAN,
            criterion="equinorm and equiangle of means and weights each fall and end at most at "
            f"{BOUNDS['nc2_equinorm']}",
            control="the values at zero error",
            figure="nc",
            arms=("main",),
            judge=_nc2,
            budget=0.0,
        ),
        Claim(
            id="nc3",
            section=COLLAPSE,
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
            section=COLLAPSE,
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
            section=COLLAPSE,
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
            section=COLLAPSE,
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
            section=COLLAPSE,
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
            section=COLLAPSE,
            sentence="Training past zero error helps robustness.",
            source=PAPYAN,
            criterion="PGD accuracy and the smallest adversarial perturbation larger at the end than at zero error",
            control="the values at zero error",
            figure="accuracy",
            arms=("main",),
            judge=_collapse_robust,
            budget=0.0,
        ),
        Claim(
            id="most-weights-near-zero",
            section=WEIGHTS,
            sentence="After training a large share of weights is close to zero, a small share far from it.",
            source="Han et al. 2015",
            criterion="share below 0.1 of the layer's initial std, and Gini of the sizes, both rise at the "
            "recipe's decay",
            control="the same net at initialisation",
            figure="weights",
            arms=("main", "weak-decay"),
            judge=_most_weights_near_zero,
            budget=0.0,
        ),
    )
}
