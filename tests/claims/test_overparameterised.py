"""Claims of over-parameterised networks judged end to end on shrunken arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleate.claims import trial, try_claims
from nucleate.claims.evidence import Evidence
from nucleate.claims.registry import ARMS
from nucleate.claims.sections import descent, sparsity


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four seeds, fewer and shorter trainings."""

    def shrunk(name: str) -> Any:
        def arm(tier: Any) -> Any:
            spec = ARMS[name](tier)
            if name in ("networks", "wrong-labels", "random-labels", "sparsity"):
                spec = replace(spec, train=replace(spec.train, epochs=3))
            if name == "kernel-ladder":
                spec = replace(spec, widths=(16, 256), steps=60)
            if name == "edge":
                spec = replace(spec, steps=60, width=8)
            if isinstance(getattr(spec, "seeds", None), tuple):
                spec = replace(spec, seeds=(0, 1, 2, 3))
            return replace(spec, steps=300) if name in ("least-norm", "largest-margin") else spec

        return arm

    monkeypatch.setattr(trial, "ARMS", {name: shrunk(name) for name in ARMS})
    monkeypatch.setattr(trial, "SEEDS", {"quick": 4})


def test_closed_forms_hold(short: None, tmp_path: Path) -> None:
    judged, runs = try_claims(
        ["double-descent-samples", "stability-returns"], tier="quick", root=tmp_path, progress=False
    )
    assert len(runs) == 2, "one run holds all seeds of an arm"
    assert judged[0].verdict == "holds"
    evidence = Evidence({"features": [run for run in runs if run.spec["recipe"] == "claims-features"]})
    widths, errors = evidence.along("features", "error", "width", antidote="none")
    assert errors.shape == (4, len(widths))
    wrong = evidence.wrong("features", descent._cell("quick", 200))
    np.testing.assert_allclose(wrong.mean(1), errors[:, widths.index(200)])


@pytest.mark.slow
def test_every_clause_is_finite(short: None, tmp_path: Path) -> None:
    ids = [
        "double-descent-width",
        "double-descent-sparsity",
        "simpler-is-more-robust-noisy",
        "fits-noise-yet-generalises",
        "fits-random-labels",
        "wide-is-kernel",
        "min-norm-bias",
        "max-margin-bias",
        "edge-of-stability",
    ]
    judged, _ = try_claims(ids, tier="quick", root=tmp_path, progress=False)
    for judgement in judged:
        for clause in judgement.clauses:
            assert np.isfinite([clause.effect, clause.low, clause.high]).all(), (judgement.claim.id, clause)


def test_a_bump_stands_above_dense_and_above_a_sparser_network() -> None:
    def curve(*errors: float) -> list[np.ndarray[Any, Any]]:
        return [np.full((3, 4), e) for e in errors]

    assert sparsity.largest_bump(curve(0.3, 0.4, 0.2, 0.6)).mean() == pytest.approx(0.1)
    assert sparsity.largest_bump(curve(0.1, 0.2, 0.3, 0.6)).mean() == pytest.approx(-0.1)
    assert sparsity.largest_bump(curve(0.5, 0.4, 0.2, 0.6)).mean() < 0, "below dense"


def test_cells_that_are_judged_are_fitted() -> None:
    for tier in ("quick", "full"):
        assert {sparsity.PEAK[tier], sparsity.SWEET[tier]} <= set(sparsity.pruned(tier).densities)
        spec = descent.features(tier)
        assert {descent.FIRST[tier], descent.POINTS[tier], descent.WIDEST[tier], descent.TUNED_FIRST[tier]} <= set(
            spec.widths
        )
        assert (spec.data.train_size, spec.data.label_noise) == (descent.POINTS[tier], descent.NOISE[tier])
        nets = descent.networks(tier)
        assert {descent.NET_FIRST[tier], descent.NET_PEAK[tier], descent.NET_WIDEST[tier]} <= set(nets.widths)
        width = descent.SAMPLE_FEATURES[tier]
        assert {width, 2 * width, descent.BEST_SMALLER[tier]} <= set(descent.more_data(tier).samples)
