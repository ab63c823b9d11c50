"""What the report shows: names of measures, panels of curves, sections and their captions."""

from __future__ import annotations

from dataclasses import dataclass

LABELS = {
    "accuracy": "accuracy",
    "error": "error",
    "loss": "loss",
    "nc1": "NC1, trace form",
    "nc1_quotient": "NC1, quotient of traces",
    "nc1_cdnv": "NC1, CDNV",
    "nc1_vci": "NC1, VCI",
    "nc2_equinorm": "NC2, equal norms of means",
    "nc2_equiangle": "NC2, equal angles of means",
    "nc2_max_angle": "NC2, maximal angle of means",
    "nc2_etf": "NC2, distance of means to the ETF",
    "nc2_equinorm_weights": "NC2, equal norms of weights",
    "nc2_equiangle_weights": "NC2, equal angles of weights",
    "nc3": "NC3, squared difference",
    "nc3_gram": "NC3, Gram form",
    "nc3_cosine": "NC3, 1 - cosine",
    "nc4": "NC4, mismatch with nearest class mean",
    "ncc_accuracy": "nearest-class-mean accuracy",
    "boundary_spread": "relative spread of boundary distances",
    "vertex_distance_mean": "distance to own vertex, mean",
    "vertex_distance_max": "distance to own vertex, farthest point",
    "logit_norm": "norm of the logits",
    "logit_ratio": "logits: spread within / between classes",
    "chi": "chi, share of neighbours of the same class",
    "ari_coarse": "agreement of density peaks with coarse groups (ARI)",
    "ari_fine": "agreement of density peaks with classes (ARI)",
    "overlap_next": "neighbour overlap with the next layer",
    "intrinsic_dimension": "intrinsic dimension (two-NN)",
    "participation_ratio": "participation ratio",
    "fgsm_accuracy": "accuracy under FGSM",
    "pgd_accuracy": "accuracy under PGD",
    "corruption_accuracy": "accuracy under corruptions",
    "min_perturbation": "smallest adversarial perturbation",
    "ece": "expected calibration error",
    "near_zero_share": "share of weights near zero",
    "gini": "Gini coefficient of |w|",
    "pattern_share": "share of points with an activation pattern of their own",
}
"""Measure -> what it is called in tables and on axes."""

SUMMARY = (
    ("", "train", "error"),
    ("", "train", "loss"),
    ("penultimate", "train", "nc1"),
    ("penultimate", "train", "nc1_quotient"),
    ("penultimate", "train", "nc1_cdnv"),
    ("penultimate", "train", "nc2_equinorm"),
    ("penultimate", "train", "nc2_equiangle"),
    ("penultimate", "train", "nc2_equinorm_weights"),
    ("penultimate", "train", "nc2_equiangle_weights"),
    ("penultimate", "train", "nc2_etf"),
    ("penultimate", "train", "nc3"),
    ("penultimate", "train", "nc4"),
    ("penultimate", "test", "nc4"),
    ("penultimate", "train", "boundary_spread"),
    ("", "train", "vertex_distance_mean"),
    ("", "train", "vertex_distance_max"),
    ("", "train", "logit_norm"),
    ("", "train", "logit_ratio"),
    ("penultimate", "test", "chi"),
    ("", "test", "accuracy"),
    ("", "test", "loss"),
    ("", "test", "ece"),
    ("", "test", "fgsm_accuracy"),
    ("", "test", "pgd_accuracy"),
    ("", "test", "corruption_accuracy"),
    ("", "test", "min_perturbation"),
    ("", "", "near_zero_share"),
    ("", "", "gini"),
    ("", "train", "pattern_share"),
)
"""Rows of the table "zero error -> end": (layer, split, metric)."""

DEPTH_MEASURES = (
    "chi",
    "ncc_accuracy",
    "nc1_quotient",
    "nc1_cdnv",
    "nc2_etf",
    "intrinsic_dimension",
    "participation_ratio",
    "overlap_next",
    "ari_coarse",
    "ari_fine",
)
"""Measures that every layer has."""


@dataclass(frozen=True)
class Line:
    """One curve of a panel."""

    metric: str
    label: str
    split: str
    main: bool = True
    """Drawn from the start when several runs share the panel."""


@dataclass(frozen=True)
class Panel:
    """One set of axes: measures over epochs."""

    id: str
    section: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    layer: str = ""
    log: bool = False


PANELS = (
    Panel(
        "vertex",
        "simplex",
        "Distance to the own vertex",
        "Euclidean distance",
        (Line("vertex_distance_max", "farthest point", "train"), Line("vertex_distance_mean", "mean", "train")),
        log=True,
    ),
    Panel(
        "nc1",
        "nc",
        "NC1: spread within classes",
        "within / between (no unit)",
        (
            Line("nc1", "trace form", "train"),
            Line("nc1_quotient", "quotient", "train", False),
            Line("nc1_cdnv", "CDNV", "train", False),
        ),
        "penultimate",
        True,
    ),
    Panel(
        "nc2",
        "nc",
        "NC2: an equiangular tight frame",
        "coefficient of variation or cosine",
        (
            Line("nc2_equinorm", "norms, means", "train"),
            Line("nc2_equiangle", "angles, means", "train"),
            Line("nc2_equinorm_weights", "norms, weights", "train", False),
            Line("nc2_equiangle_weights", "angles, weights", "train", False),
        ),
        "penultimate",
        True,
    ),
    Panel(
        "nc3",
        "nc",
        "NC3: weights align with class means",
        "distance of normalised matrices",
        (
            Line("nc3", "squared difference", "train"),
            Line("nc3_gram", "Gram form", "train", False),
            Line("nc3_cosine", "1 - cosine", "train", False),
        ),
        "penultimate",
        True,
    ),
    Panel(
        "nc4",
        "nc",
        "NC4: nearest class mean decides",
        "share of points that disagree",
        (Line("nc4", "training points", "train"), Line("nc4", "held-out points", "test")),
        "penultimate",
        True,
    ),
    Panel(
        "logit-ratio",
        "logits",
        "Spread within / between classes",
        "ratio (no unit)",
        (Line("logit_ratio", "within / between", "train"),),
        log=True,
    ),
    Panel(
        "logit-norm",
        "logits",
        "Norm of the logits",
        "Euclidean norm",
        (Line("logit_norm", "mean norm", "train"),),
        log=True,
    ),
    Panel(
        "boundary-spread",
        "boundary",
        "Relative spread of the distances",
        "std / mean within a class",
        (Line("boundary_spread", "mean over classes", "train"),),
        "penultimate",
        True,
    ),
    Panel(
        "near-zero",
        "weights",
        "Weights near zero, and their inequality",
        "share or coefficient, 0 to 1",
        (
            Line("near_zero_share", "share near zero", ""),
            Line("gini", "Gini of |w|", ""),
        ),
    ),
    Panel(
        "accuracy",
        "accuracy",
        "Accuracy",
        "share of points",
        (Line("accuracy", "training points", "train"), Line("accuracy", "held-out points", "test")),
    ),
    Panel(
        "loss",
        "accuracy",
        "Loss",
        "mean loss over points",
        (Line("loss", "training points", "train"), Line("loss", "held-out points", "test")),
        log=True,
    ),
    Panel(
        "robustness",
        "accuracy",
        "Accuracy on disturbed inputs",
        "share of held-out points",
        (
            Line("pgd_accuracy", "PGD", "test"),
            Line("fgsm_accuracy", "FGSM", "test", False),
            Line("corruption_accuracy", "corruptions", "test", False),
        ),
    ),
    Panel(
        "perturbation",
        "accuracy",
        "Smallest adversarial perturbation",
        "size in units of the input range",
        (Line("min_perturbation", "held-out points", "test"),),
    ),
    Panel(
        "calibration",
        "accuracy",
        "Calibration error",
        "expected calibration error",
        (Line("ece", "held-out points", "test"),),
    ),
    Panel(
        "patterns",
        "cells",
        "Points whose activation pattern is their own",
        "share of training points",
        (Line("pattern_share", "own activation pattern", "train"),),
    ),
)

SECTIONS = {
    "verdicts": ("Verdicts", "Each claim with the criterion written down before the run, and what its interval says."),
    "audit": (
        "Audit of the measures",
        "Does a measure rank these models as their generalisation gap does? A measure that ranks backwards here must "
        "not be read as a sign of generalisation.",
    ),
    "summary": ("From zero error to the end", "What changed after the last training error was gone."),
    "simplex": (
        "The softmax simplex",
        "Each point is one training example, each corner is certainty in one class; past zero error the points should "
        "move to the corners.",
    ),
    "etf": (
        "Means and weights on the ETF",
        "Under collapse the points gather at their class means, the means at the vertices of the nearest simplex ETF, "
        "and the classifier's rows point the same way.",
    ),
    "nc": (
        "Neural collapse, NC1 to NC4",
        "In neural collapse all four measures fall, and go on falling to the right of the zero-error line.",
    ),
    "logits": (
        "Logit clusters",
        "Look for one cluster for each class, far outside the small simplex of unit vectors that is drawn for scale.",
    ),
    "boundary": (
        "Distance to the own decision boundary",
        "Under collapse the points of a class end at nearly the same signed distance from their class's hyperplane.",
    ),
    "layers": (
        "Every layer in two dimensions",
        "Move both sliders and watch where, and when, the classes come apart.",
    ),
    "chi": (
        "Neighbours of the same class",
        "chi is the share of a point's nearest neighbours that have its own label: look for growth with depth, against "
        "the untrained network and against chance.",
    ),
    "depth": (
        "Layer by layer",
        "From the effective depth on, the nearest class mean classifies as well as in the last hidden layer, so the "
        "layers after it add little.",
    ),
    "weights": (
        "Weight histograms",
        "Compare start and end: does training move a large share of the weights close to zero, and a small "
        "share far from it?",
    ),
    "accuracy": (
        "Accuracy, loss and robustness",
        "What training past zero error does to held-out accuracy, to attacks and to calibration.",
    ),
    "cells": (
        "Points in cells of their own",
        "A cell is the set of inputs with one ReLU activation pattern; a wide network gives almost every training "
        "point a cell that no other point is in.",
    ),
    "about": ("About these runs", "What was run, on what, and how to read the numbers."),
}
"""Section -> (heading, one-sentence caption), in the order of the page."""
