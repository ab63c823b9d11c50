"""A claim of the subject: its sentence, source, experiment and criterion, written down before the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from nucleate.claims.evidence import Evidence
from nucleate.claims.verdict import Clause, verdict

Tier = Literal["quick", "full"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence, and what would make it true."""

    id: str
    section: str
    sentence: str
    source: str
    criterion: str
    control: str
    figure: str
    """Section of the report that shows it."""
    arms: tuple[str, ...]
    """Names of the experiments that it is judged on."""
    judge: Callable[[Evidence, Tier], list[Clause]]
    budget: float
    """Seconds of the quick tier on two cores that no other claim pays for."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of a claim."""

    claim: Claim
    tier: Tier
    clauses: list[Clause]
    seeds: int
    seconds: float

    @property
    def verdict(self) -> str:
        """holds, fails or inconclusive."""
        return verdict(self.clauses)

    def row(self) -> dict[str, Any]:
        """One flat-enough row for JSON: the deciding clause's effect and interval, and all clauses below it."""
        claim, decisive = self.claim, self.decisive
        return {
            "id": claim.id,
            "tier": self.tier,
            "verdict": self.verdict,
            "effect": decisive.effect,
            "low": decisive.low,
            "high": decisive.high,
            "seeds": self.seeds,
            "criterion": claim.criterion,
            "control": claim.control,
            "seconds": round(self.seconds, 2),
            "sentence": claim.sentence,
            "source": claim.source,
            "section": claim.section,
            "figure": claim.figure,
            "clauses": [clause.row() for clause in self.clauses],
        }

    @property
    def decisive(self) -> Clause:
        """The clause that the verdict hangs on: the first one with the verdict's own word."""
        return next(c for c in self.clauses if c.judged and c.verdict == self.verdict)
