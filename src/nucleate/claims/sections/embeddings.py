"""Claims about embeddings, layer by layer."""

from __future__ import annotations

import numpy as np

from nucleate.claims.arms import MARGIN, Arm
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence
from nucleate.claims.verdict import Clause, mean_clause
from nucleate.spec import CollapseSpec, DataSpec, MeasureSpec, ModelSpec, TrainSpec


def superclasses(tier: Tier) -> CollapseSpec:
    """A task with coarse groups and fine classes, whose input holds next to no neighbours of one class."""
    return CollapseSpec(
        recipe="superclasses-mlp",
        data=DataSpec(name="superclasses"),
        model=ModelSpec(width=128 if tier == "quick" else 512, depth=5, batchnorm=True),
        train=TrainSpec(lr=0.1, weight_decay=5e-4, schedule="cosine", epochs=12 if tier == "quick" else 60, threads=1),
        measure=MeasureSpec(points=2, robustness=0, subsample=1000),
    )


ARMS: dict[str, Arm] = {"superclasses": superclasses}


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


CLAIMS = (
    Claim(
        id="clusters-with-depth",
        section="Embeddings, layer by layer",
        sentence="Scattered inputs become class clusters layer by layer.",
        source="Doimo et al. 2020",
        criterion="held-out chi(penultimate) - chi(input) > 0.1 on the synthetic task, above the untrained "
        "net's on both, never falling by more than the margin between layers",
        control="the untrained net",
        figure="chi",
        arms=("superclasses", "main"),
        judge=_clusters_with_depth,
        budget=20.0,
    ),
    Claim(
        id="nucleation",
        section="Embeddings, layer by layer",
        sentence="Coarse groups form before fine classes; each layer is another probability density.",
        source="Doimo et al. 2020",
        criterion="density peaks agree best (ARI) with the coarse groups at an earlier layer than with the classes",
        control="the same peaks against the fine classes",
        figure="chi",
        arms=("superclasses",),
        judge=_nucleation,
        budget=0.0,
    ),
)
