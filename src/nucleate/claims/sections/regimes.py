"""Claims about where gradient descent goes: the kernel regime and implicit bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr

from nucleate.claims.arms import Arm
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.verdict import Clause, mean_clause, ratio_clause
from nucleate.recipes.bias import recipe as bias_recipe
from nucleate.recipes.lazy import recipe as lazy_recipe
from nucleate.spec import BiasSpec, DataSpec, LazySpec

SECTION = "Over-parameterised networks"
EDGE = 0.10
"""How near the sharpness must come to 2 / rate."""


def ladder(tier: Tier) -> LazySpec:
    """A ladder of widths beside the infinite one."""
    if tier == "full":
        return lazy_recipe("mnist")
    return LazySpec(
        recipe="claims-ladder", data=DataSpec(train_size=150), widths=(16, 64, 256, 1024), steps=250, noises=(),
        threads=1,
    )  # fmt: skip


def least_norm(tier: Tier) -> BiasSpec:
    """Least squares on random features."""
    return replace(bias_recipe("min-norm"), steps=1500, points=4, threads=1)


def largest_margin(tier: Tier) -> BiasSpec:
    """Logistic regression on separable points."""
    return replace(bias_recipe("max-margin"), steps=1500, points=10, threads=1)


def edge(tier: Tier) -> BiasSpec:
    """Full-batch descent at three learning rates."""
    if tier == "full":
        return replace(bias_recipe("edge-1000"), points=2)
    return replace(bias_recipe("edge"), points=2, width=32, data=DataSpec(train_size=100), threads=1)


ARMS: dict[str, Arm] = {
    "kernel-ladder": ladder,
    "least-norm": least_norm,
    "largest-margin": largest_margin,
    "edge": edge,
}


def _kernel(e: Evidence, tier: Tier) -> list[Clause]:
    widths, gap = e.along("kernel-ladder", "gap", "width")
    _, drift = e.along("kernel-ladder", "drift", "width")
    logs = np.log(widths)
    gap_slope, drift_slope = (np.polyfit(logs, np.log(values).T, 1)[0] for values in (gap, drift))
    return [
        mean_clause("power of the width that the gap follows", gap_slope, "<", -0.2, unit=""),
        mean_clause("power of the width that the drift follows", drift_slope, "<", -0.4, unit=""),
        ratio_clause("gap at the narrowest over the widest", gap[:, 0], gap[:, -1], ">=", 4.0),
    ]


def _end(e: Evidence, arm: str, metric: str, of: str) -> Floats:
    """Values at the last step of one way of descending."""
    steps, values = e.along(arm, metric, "step", split="train", arm=of)
    return values[:, int(np.argmax(steps))]


def _least_norm(e: Evidence, tier: Tier) -> list[Clause]:
    zero, random = (_end(e, "least-norm", "distance", of) for of in ("from zero", "from a random start"))
    return [
        mean_clause("from zero: distance to the minimum-norm solution", zero, "<", 1e-3, unit=""),
        mean_clause("from a random start: the same distance", random, ">=", 1e-3, unit=""),
    ]


def _margin(e: Evidence, tier: Tier) -> list[Clause]:
    steps, cosine = e.along("largest-margin", "cosine", "step", split="train", arm="plain")
    rises = np.array([spearmanr(np.log(steps), row).statistic for row in cosine])
    normalised = _end(e, "largest-margin", "cosine", "normalised")
    return [
        mean_clause("normalised descent: cosine to the maximum margin", normalised, ">", 0.99, unit=""),
        mean_clause("plain descent: rank correlation of the cosine with log t", rises, ">", 0.0, unit=""),
    ]


def _edge(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    for rate in edge(tier).rates:
        ratio = _end(e, "edge", "sharpness_ratio", f"rate {rate:g}")
        clauses += [
            mean_clause(f"rate {rate:g}: sharpness x rate / 2, at least", ratio, ">=", 1 - EDGE, unit=""),
            mean_clause(f"rate {rate:g}: sharpness x rate / 2, at most", ratio, "<=", 1 + EDGE, unit=""),
        ]
    return clauses


CLAIMS = (
    Claim(
        id="wide-is-kernel",
        section=SECTION,
        sentence="A very wide shallow network trains like its neural tangent kernel.",
        source="Jacot, Gabriel, Hongler 2018; Chizat et al. 2019",
        criterion="gap to the kernel's prediction at the same step and drift of the network's kernel fall with width, "
        "with powers below -0.2 and -0.4; gap at the widest at most a quarter of the narrowest's",
        control="the narrow networks; the asymptotic power -1/2 is not required",
        figure="lazy",
        arms=("kernel-ladder",),
        judge=_kernel,
        budget=2.0,
    ),
    Claim(
        id="min-norm-bias",
        section=SECTION,
        sentence="Gradient descent picks a simple solution by itself.",
        source="Gunasekar et al. 2018",
        criterion="relative distance to the minimum-norm interpolator below 1e-3 from zero, not from a random start",
        control="a random start of the same norm",
        figure="bias",
        arms=("least-norm",),
        judge=_least_norm,
        budget=1.0,
    ),
    Claim(
        id="max-margin-bias",
        section=SECTION,
        sentence="On separable data it turns towards the maximum-margin separator.",
        source="Soudry et al. 2018; Nacson et al. 2019",
        criterion="normalised descent: cosine to the separator above 0.99; plain descent: cosine rises along log t",
        control="plain descent beside normalised",
        figure="bias",
        arms=("largest-margin",),
        judge=_margin,
        budget=1.0,
    ),
    Claim(
        id="edge-of-stability",
        section=SECTION,
        sentence="Full-batch training settles where the sharpness is 2 / learning rate.",
        source="Cohen et al. 2021",
        criterion="final sharpness within 10 % of 2 / rate at three learning rates",
        control="three learning rates",
        figure="bias",
        arms=("edge",),
        judge=_edge,
        budget=4.0,
    ),
)
