"""The claim about double descent along sparsity, and the networks that it shares with those about robustness.

Networks, learning rate and densities were chosen on seeds from 100, which no verdict uses. There, with true labels, the
error grows slowly from the dense network on, a point at 8 % of the weights, and never falls again: no bump is that no
error stands above both the dense network's and a sparser one's, not that no error stands above the dense network's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nucleate.claims.arms import MARGIN, Arm
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.sections.descent import SECTION
from nucleate.claims.verdict import Clause, paired_clause
from nucleate.recipes.descent import recipe
from nucleate.spec import DescentSpec
from nucleate.studies.descent.closed import NONE, cell_name

NOISE = 0.4
PEAK, SWEET = {"quick": 0.14, "full": 0.08}, {"quick": 0.03, "full": 0.018}
"""Densities at the top of the bump and at the sweet spot after it."""


def pruned(tier: Tier) -> DescentSpec:
    """One network pruned further and further, on true and on wrong labels, and attacked."""
    spec = recipe("digits-sparsity")
    spec = replace(spec, recipe="claims-sparsity", noises=(0.0, NOISE), controls=())
    if tier == "full":
        return spec
    train = replace(spec.train, threads=1, epochs=100)
    return replace(spec, widths=(160,), train=train, densities=(0.25, PEAK[tier], SWEET[tier]))


ARMS: dict[str, Arm] = {"sparsity": pruned}


def wrong(e: Evidence, tier: Tier, noise: float, density: float, *, attacked: bool = False) -> Floats:
    """(seeds, images) 1 where the ticket of a density, or the dense network, is wrong on a test point."""
    spec = pruned(tier)
    samples = spec.data.train_size
    assert samples is not None
    cell = cell_name(spec.widths[0], samples, noise, NONE, density=density)
    return e.wrong("sparsity", f"{cell}, attacked" if attacked else cell)


def largest_bump(wrong: list[Floats]) -> Floats:
    """Of errors (seeds, images) by falling density, the largest bump's height, negative if there is none.

    A bump is an error above both the first and a later one, and as high as the smaller of the two differences.

    >>> a, b, c = (np.full((2, 1), v) for v in (0.0, 0.5, 0.25))
    >>> float(largest_bump([a, b, c]).mean()), float(largest_bump([a, c, b]).mean())
    (0.25, -0.25)
    """
    pairs = [
        min(wrong[i] - wrong[0], wrong[i] - wrong[j], key=np.mean)
        for i in range(1, len(wrong))
        for j in range(i + 1, len(wrong))
    ]
    return max(pairs, key=np.mean)


def _sparsity(e: Evidence, tier: Tier) -> list[Clause]:
    dense, peak, sweet = (wrong(e, tier, NOISE, d) for d in (1.0, PEAK[tier], SWEET[tier]))
    clean = [wrong(e, tier, 0.0, d) for d in (1.0, *pruned(tier).densities)]
    told = f"{100 * NOISE:.0f} % wrong labels: error at density {PEAK[tier]:g} above"
    return [
        paired_clause(f"{told} dense", peak - dense, ">", 0.0),
        paired_clause(f"{told} {SWEET[tier]:g}", peak - sweet, ">", 0.0),
        paired_clause("true labels: the largest bump", largest_bump(clean), "<=", 100 * MARGIN[tier]),
    ]


CLAIMS = (
    Claim(
        id="double-descent-sparsity",
        section=SECTION,
        sentence="Test error descends twice along sparsity too: pruned under label noise a network gets worse, then "
        "better than it was whole.",
        source="He et al. 2022",
        criterion="under noise: bump above dense and above the sweet spot; true labels: no error above both "
        "dense's and a sparser network's beyond the margin",
        control="the same on true labels",
        figure="descent-sparsity",
        arms=("sparsity",),
        judge=_sparsity,
        budget=10.0,
    ),
)
