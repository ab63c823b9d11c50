"""Claims about the robustness of sparse networks."""

from __future__ import annotations

from collections.abc import Callable

from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.sections.pruning import SECTION
from nucleate.claims.sections.sparsity import NOISE, SWEET, pruned, wrong
from nucleate.claims.verdict import Clause, paired_clause


def _best(tier: Tier, noise: float) -> float:
    """The pruned density of the best accuracy: the sweet spot under noise; the densest with true labels."""
    return SWEET[tier] if noise else max(pruned(tier).densities)


def _robust(noise: float) -> Callable[[Evidence, Tier], list[Clause]]:
    def judge(e: Evidence, tier: Tier) -> list[Clause]:
        best = _best(tier, noise)

        def gain(attacked: bool) -> Floats:
            dense, sparse = (wrong(e, tier, noise, d, attacked=attacked) for d in (1.0, best))
            return dense - sparse

        return [
            paired_clause(f"PGD accuracy at density {best:g} minus dense", gain(attacked=True), ">", 0.0),
            paired_clause(f"test accuracy at density {best:g} minus dense", gain(attacked=False), ">=", 0.0),
        ]

    return judge


def _claim(kind: str, labels: str, noise: float) -> Claim:
    return Claim(
        id=f"simpler-is-more-robust-{kind}",
        section=SECTION,
        sentence=f"A simpler representation generalises better and is more robust: with {labels} labels.",
        source="Guo et al. 2018; He et al. 2022",
        criterion="PGD accuracy at the pruned density of the best accuracy above dense's, accuracy not below",
        control="the dense network of the same seed",
        figure="descent-sparsity",
        arms=("sparsity",),
        judge=_robust(noise),
        budget=0.0,
    )


CLAIMS = (_claim("noisy", "wrong", NOISE), _claim("clean", "true", 0.0))
