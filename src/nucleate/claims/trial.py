"""Try claims: run what they need once, judge each, and tell."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nucleate.claims.arms import SEEDS
from nucleate.claims.claim import Claim, Judgement, Tier
from nucleate.claims.evidence import Evidence
from nucleate.claims.registry import ARMS, CLAIMS
from nucleate.runs import Run
from nucleate.studies.cells import run_specs

SIGN = {"holds": "+", "fails": "x", "inconclusive": "?"}


def chosen(ids: Sequence[str]) -> list[Claim]:
    """The claims of these ids; all of them if none.

    Raises:
        ValueError: for an unknown id, with the nearest one.
    """
    for name in ids:
        if name not in CLAIMS:
            near = difflib.get_close_matches(name, CLAIMS, n=1)
            hint = f"did you mean {near[0]}?" if near else "see nucleate claims --list"
            raise ValueError(f"no claim is named {name!r}; {hint}")
    return [CLAIMS[name] for name in ids] if ids else list(CLAIMS.values())


def try_claims(
    ids: Sequence[str],
    *,
    tier: Tier,
    root: Path,
    data_root: Path | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> tuple[list[Judgement], list[Run]]:
    """Run the arms of the claims, each once for every seed, and judge; finished runs are used as they are."""
    claims = chosen(ids)
    arms = list(dict.fromkeys(arm for claim in claims for arm in claim.arms))
    specs = {arm: _seeded(ARMS[arm](tier), SEEDS[tier]) for arm in arms}
    # Runs that hold all seeds are the longest; begun last, one of them would keep one process busy and the others idle.
    order = sorted(arms, key=lambda arm: len(specs[arm]))
    cells = [spec for arm in order for spec in specs[arm]]
    left = iter(run_specs(cells, root=root, data_root=data_root, jobs=jobs, progress=progress, label=f"claims, {tier}"))
    by_arm = {arm: [next(left) for _ in specs[arm]] for arm in order}
    runs = [run for arm in arms for run in by_arm[arm]]
    seconds = {arm: sum(float(run.env.get("seconds", 0.0)) for run in members) for arm, members in by_arm.items()}
    judgements = [
        Judgement(
            claim=claim,
            tier=tier,
            clauses=claim.judge(Evidence({arm: by_arm[arm] for arm in claim.arms}), tier),
            seeds=SEEDS[tier],
            seconds=sum(seconds[arm] for arm in claim.arms),
        )
        for claim in claims
    ]
    return judgements, runs


def _seeded(spec: Any, seeds: int) -> list[Any]:
    """An experiment over seeds 0, 1, ...: one spec for all where one run trains them side by side, else one each."""
    side_by_side = getattr(spec, "seeds", 1)
    if isinstance(side_by_side, tuple):
        # An arm may ask for more, where chance is a matter of a point.
        return [replace(spec, seeds=tuple(range(max(seeds, len(side_by_side)))))]
    if side_by_side != 1:
        return [replace(spec, seed=0, seeds=seeds)]
    return [replace(spec, seed=seed) for seed in range(seeds)]


def listing(ids: Sequence[str] = ()) -> str:
    """Every claim with its sentence, source, criterion and control."""
    lines: list[str] = []
    section = ""
    for claim in chosen(ids):
        if claim.section != section:
            section = claim.section
            lines += ["", section]
        lines.append(f"  {claim.id}: {claim.sentence} ({claim.source})")
        lines += textwrap.wrap(
            f"holds if {claim.criterion}; control: {claim.control}",
            100,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_on_hyphens=False,
        )
    return "\n".join(lines).lstrip("\n")


def table(judgements: Sequence[Judgement]) -> str:
    """The verdicts, each with the effect, interval and bound of every clause."""
    lines: list[str] = []
    for judgement in judgements:
        lines.append(
            f"{SIGN[judgement.verdict]} {judgement.verdict:13s}{judgement.claim.id}: {judgement.claim.sentence}"
        )
        for c in judgement.clauses:
            interval = f"{c.effect:.4g} [{c.low:.4g}, {c.high:.4g}]"
            note = f"   ({c.reason})" if c.reason else ""
            lines.append(
                f"      {SIGN[c.verdict]} {c.name}: {interval} {c.unit}, wanted {c.direction} {c.bound:g}{note}"
                if c.judged
                else f"        {c.name}: {interval} {c.unit}, shown beside{note}"
            )
    counts = {word: sum(j.verdict == word for j in judgements) for word in SIGN}
    n = judgements[0].seeds if judgements else 0
    lines.append(f"{', '.join(f'{n} {word}' for word, n in counts.items())}; {n} seeds, 95 % intervals")
    return "\n".join(lines)
