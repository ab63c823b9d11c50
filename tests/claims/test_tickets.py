"""Claims about tickets: judged on made ladders, so that every verdict can come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleate.claims.claim import Tier
from nucleate.claims.evidence import Evidence
from nucleate.claims.registry import ARMS, CLAIMS
from nucleate.claims.sections import tickets
from nucleate.claims.trial import _seeded
from nucleate.claims.verdict import verdict
from nucleate.runs import Run, write_run
from nucleate.spec import CapacitySpec, CollapseSpec, DescentSpec, TicketsSpec

QUICK: Tier = "quick"
IMAGES = 400


def made(
    tmp_path: Path, arm: str, share: dict[tuple[int, str], float], **metrics: dict[tuple[int, str], float]
) -> Evidence:
    """A finished ladder of four seeds with these accuracies by level and arm."""
    spec = TicketsSpec(recipe=arm, seeds=4)
    with write_run(tmp_path, spec, env={}, data="none") as writer:
        rng = np.random.default_rng(0)
        for (level, name), value in share.items():
            right = {
                f"{seed}/correct": (rng.permutation(IMAGES) < value * IMAGES).astype(np.uint8) for seed in range(4)
            }
            writer.save_tensors(f"level-{level:02d}-{name}", right)
        rows: list[dict[str, Any]] = []
        for metric, table in {"stop_accuracy": share, **metrics}.items():
            for (level, name), value in table.items():
                layer = "penultimate" if metric == "nc1" else ""
                base = {"metric": metric, "level": level, "arm": name, "epoch": 1, "layer": layer, "split": ""}
                rows += [{**base, "seed": seed, "value": value * (1 + 0.01 * seed)} for seed in range(4)]
        writer.append(rows)
        writer.finish()
        return Evidence({arm: [Run(writer.path)]})


def word(claim: str, evidence: Evidence) -> str:
    return verdict(CLAIMS[claim].judge(evidence, QUICK))


LEVEL = tickets.TICKET[QUICK]


@pytest.mark.parametrize(("ticket", "says"), [(0.985, "holds"), (0.93, "fails")])
def test_matching(ticket: float, says: str, tmp_path: Path) -> None:
    share = {(0, "ticket"): 0.985, (LEVEL, "ticket"): ticket}
    if says == "holds":
        # The same images right in both, as equal networks have them.
        evidence = made(tmp_path, "ladder", share)
        path = evidence.arms["ladder"][0].run
        assert path.done
        clauses = CLAIMS["ticket-matches"].judge(evidence, QUICK)
        assert clauses[0].effect == pytest.approx(0.0, abs=1e-9)
    else:
        assert word("ticket-matches", made(tmp_path, "ladder", share)) == says


@pytest.mark.parametrize(("control", "says"), [(0.80, "holds"), (0.99, "fails")])
def test_controls(control: float, says: str, tmp_path: Path) -> None:
    share = {(LEVEL, arm): 0.80 for arm in ("random", "layer-shuffle")} | {
        (LEVEL, "ticket"): 0.9,
        (LEVEL, "reinit"): control,
    }
    assert word("ticket-beats-reinit", made(tmp_path, "ladder", share)) == says


@pytest.mark.parametrize(("fresh", "says"), [(500.0, "holds"), (150.0, "fails")])
def test_speed(fresh: float, says: str, tmp_path: Path) -> None:
    level = tickets.EARLY[QUICK]
    steps = {(0, "ticket"): 200.0, (level, "ticket"): 100.0, (level, "reinit"): fresh}
    evidence = made(tmp_path, "ladder-fast", dict.fromkeys(steps, 0.9), stop_step=steps)
    assert word("ticket-learns-faster", evidence) == says


@pytest.mark.parametrize(("nc1", "says"), [(0.9, "holds"), (1.5, "fails")])
def test_collapse(nc1: float, says: str, tmp_path: Path) -> None:
    share = {(0, "ticket"): 0.90, (LEVEL, "ticket"): 0.99}
    evidence = made(tmp_path, "ladder", share, nc1={(0, "ticket"): 0.5, (LEVEL, "ticket"): nc1})
    assert word("tickets-collapse", evidence) == says


@pytest.mark.parametrize(("lost", "says"), [(0.80, "holds"), (0.97, "fails")])
def test_equal_budget(lost: float, says: str, tmp_path: Path) -> None:
    level = tickets.SPARSE[QUICK]
    share = {(0, "ticket"): 0.96, (level, "ticket"): 0.95, (level, "one-shot"): lost, (level, "one-shot-longer"): 0.8}
    assert word("iterative-beats-one-shot", made(tmp_path, "ladder", share)) == says


def test_scores_of_the_untrained_network(tmp_path: Path) -> None:
    arms = {f"{m}-init": 0.9 for m in ("snip", "grasp", "synflow")} | {"random-init": 0.7}
    share = {(LEVEL, arm): value for arm, value in arms.items()} | {(0, "ticket"): 0.98}
    clean = {(LEVEL, "synflow-init"): 0.0}
    assert word("tickets-without-training", made(tmp_path / "a", "ladder", share, emptied=clean)) == "holds"
    emptied = {(LEVEL, "synflow-init"): 1.0}
    assert word("tickets-without-training", made(tmp_path / "b", "ladder", share, emptied=emptied)) == "fails"


def test_runs_that_stack_their_seeds_are_one_cell() -> None:
    assert [s.seed for s in _seeded(CollapseSpec(), 3)] == [0, 1, 2]
    assert [(s.seed, s.seeds) for s in _seeded(TicketsSpec(seeds=10), 3)] == [(0, 3)]
    assert [s.seeds for s in _seeded(DescentSpec(), 5)] == [(0, 1, 2, 3, 4)]


@pytest.mark.parametrize("tier", ["quick", "full"])
def test_tickets_of_all_parents_have_as_many_weights(tier: Tier) -> None:
    import torch

    from nucleate.models import build
    from nucleate.studies.ladder.masks import total_count

    shape = (1, 8, 8) if tier == "quick" else (1, 28, 28)
    counts = []
    for arm, level in zip(
        ("parent-small", "parent-middle", "ladder"), sorted(tickets.PARENTS[tier].values()), strict=True
    ):
        spec = ARMS[arm](tier)
        net = build(spec.model, shape, 10, generator=torch.Generator())
        counts.append(total_count(net, spec.ladder, level))
    assert max(counts) / min(counts) < 1.02


@pytest.mark.parametrize(("enough", "says"), [(0.85, "holds"), (0.5, "fails")])
def test_subspaces(enough: float, says: str, tmp_path: Path) -> None:
    runs = []
    for seed in range(3):
        with write_run(tmp_path, CapacitySpec(seed=seed), env={}, data="none") as writer:
            arms = [("dense", 1.0, 0.9), ("random", 0.01, enough), ("random", 0.1, 0.89), ("mask", 0.001, 0.9)]
            writer.append({"metric": "accuracy", "arm": a, "share": s, "value": v, "epoch": 1} for a, s, v in arms)
            writer.finish()
            runs.append(Run(writer.path))
    assert word("low-dimensional-subspaces", Evidence({"subspaces": runs})) == says
