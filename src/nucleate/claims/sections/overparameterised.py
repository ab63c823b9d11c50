"""Claims about over-parameterised networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nucleate.claims.arms import Arm, bare, main
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence
from nucleate.claims.verdict import Clause, mean_clause
from nucleate.spec import CollapseSpec, ModelSpec

WIDTHS = (2, 8, 32, 128)
"""Widths of the single hidden layer on which cells are counted."""


def _width(width: int) -> Callable[[Tier], CollapseSpec]:
    def one_hidden_layer(tier: Tier) -> CollapseSpec:
        spec = main(tier)
        return replace(
            spec,
            recipe=f"{spec.recipe}-{width}",
            model=ModelSpec(width=width, depth=1),
            train=replace(spec.train, lr=0.05, weight_decay=1e-4, epochs=12, threads=1),
            measure=bare(spec.measure),
        )

    return one_hidden_layer


ARMS: dict[str, Arm] = {f"width-{w}": _width(w) for w in WIDTHS}


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


CLAIMS = (
    Claim(
        id="zero-error",
        section="Over-parameterised networks",
        sentence="A network with more parameters than points drives its training loss to almost zero.",
        source="Zhang et al. 2017",
        criterion="training error 0 and cross-entropy below 1 % of its chance value ln C",
        control="chance: cross-entropy ln C",
        figure="accuracy",
        arms=("main",),
        judge=_zero_error,
        budget=16.0,
    ),
    Claim(
        id="points-in-cells",
        section="Over-parameterised networks",
        sentence="A large network isolates points into cells, each mapped to its class.",
        source="Montufar et al. 2014",
        criterion="share of training points with an activation pattern of their own rises with width "
        "and ends above 0.95",
        control="a narrow net",
        figure="cells",
        arms=tuple(f"width-{w}" for w in WIDTHS),
        judge=_points_in_cells,
        budget=7.0,
    ),
)
