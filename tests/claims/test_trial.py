"""Claims end to end on short runs, and the laws of the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nucleate.claims import CLAIMS, listing, table, trial, try_claims
from nucleate.claims.claim import Tier
from nucleate.claims.evidence import Evidence
from nucleate.claims.registry import ARMS
from nucleate.cli import main
from nucleate.spec import CollapseSpec, digest


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of six epochs."""

    def main_arm(tier: str) -> CollapseSpec:
        spec = ARMS["main"]("quick")
        return replace(
            spec,
            model=replace(spec.model, width=64),
            train=replace(spec.train, epochs=10),
            measure=replace(spec.measure, points=2, robustness=20, subsample=60, picture=40),
        )

    monkeypatch.setattr(trial, "ARMS", {**ARMS, "main": main_arm})
    monkeypatch.setattr(trial, "SEEDS", {"quick": 2})


def test_every_claim_names_known_arms_and_is_whole() -> None:
    for name, claim in CLAIMS.items():
        assert name == claim.id and claim.arms and set(claim.arms) <= set(ARMS)
        assert all((claim.sentence, claim.source, claim.criterion, claim.control, claim.figure, claim.section))
        assert claim.budget >= 0


def test_the_quick_tier_keeps_its_budget() -> None:
    assert sum(claim.budget for claim in CLAIMS.values()) <= 360


@pytest.mark.parametrize("tier", ["quick", "full"])
def test_arms_are_different_experiments(tier: Tier) -> None:
    assert len({digest(arm(tier)) for arm in ARMS.values()}) == len(ARMS)


def test_a_trial_runs_each_arm_once_and_judges(short: None, tmp_path: Path) -> None:
    judged, runs = try_claims(["nc1", "zero-error", "collapse-robust"], tier="quick", root=tmp_path, progress=False)
    assert [j.claim.id for j in judged] == ["nc1", "zero-error", "collapse-robust"]
    assert len(runs) == 2 == len(list(tmp_path.glob("collapse-*")))
    ends = [next(r["value"] for r in run.select(metric="error", split="train", epoch=10)) for run in runs]
    assert judged[1].clauses[0].effect == pytest.approx(np.mean(ends))
    shown = table(judged)
    assert all(j.claim.sentence in shown and j.verdict in shown for j in judged)
    for j in judged:
        row = j.row()
        wanted = {"id", "tier", "verdict", "effect", "low", "high", "seeds", "criterion", "control", "seconds"}
        assert wanted <= set(row)
        assert row["verdict"] in [c["verdict"] for c in row["clauses"]]


def test_evidence_is_ordered_by_seed_and_nan_without_zero_error(short: None, tmp_path: Path) -> None:
    _, runs = try_claims(["nc1"], tier="quick", root=tmp_path, progress=False)
    evidence = Evidence({"main": runs})
    at = {
        r.spec["seed"]: r.select(metric="nc1", split="train", layer="penultimate", epoch=10)[0]["value"] for r in runs
    }
    np.testing.assert_array_equal(evidence.values("main", "nc1", "end"), [at[0], at[1]])
    evidence.arms["main"][0].zero = -1
    assert np.isnan(evidence.values("main", "nc1", "zero")[0])
    assert np.isnan(evidence.images("main", "test_correct", "zero")[0]).all()


def test_the_command_writes_rows_and_a_page(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["claims", "nc3", "--quick", "--json", "rows.json", "--figure", "nc3.svg", "--jobs", "1"]) == 0
    (row,) = json.loads(Path("rows.json").read_text())
    assert row["id"] == "nc3" and row["tier"] == "quick" and row["seeds"] == 2
    assert "<svg" in Path("nc3.svg").read_text()
    assert Path("runs/claims.html").stat().st_size > 1_000_000
    assert "nc3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [(["claims", "nc11"], "did you mean nc1"), (["claims", "--quick", "--figure", "x.svg"], "draws one claim")],
)
def test_a_mistake_is_one_line(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert words in capsys.readouterr().err


def test_the_listing_has_every_sentence_and_criterion() -> None:
    shown = " ".join(listing().split())
    assert all(c.sentence in shown and c.criterion in shown for c in CLAIMS.values())
