"""Claims about double descent and the memory of wrong labels.

Sizes named here (first minimum, peak) were read off curves of seeds from 100 on, which no verdict uses. Three designs
were made stronger, on those seeds too, after a first trial on seeds from 0 came out inconclusive; no bound moved.
Networks: widest 512 and not 192, which had barely descended. Random labels: 4,000 synthetic test points, because 359
digits leave an interval wider than the margin of one point. Churn: twenty seeds, the threshold as all sizes within 2 %
of it, against the one size elsewhere that churns most on average, because a maximum taken seed by seed is biased.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nucleate.claims.arms import MARGIN, Arm
from nucleate.claims.claim import Claim, Tier
from nucleate.claims.evidence import Evidence, Floats
from nucleate.claims.verdict import Clause, equivalence, mean_clause, paired_clause
from nucleate.recipes.descent import ADAM, recipe
from nucleate.spec import DataSpec, DescentSpec, ModelSpec, TrainSpec
from nucleate.studies.descent.closed import NONE, cell_name

SECTION = "Over-parameterised networks"

NOISE = {"quick": 0.2, "full": 0.1}
POINTS = {"quick": 200, "full": 2000}
"""Training points of the closed form: the peak must be where its features are as many."""
FIRST = {"quick": 50, "full": 200}
"""Features at the first minimum."""
TUNED_FIRST = {"quick": 180, "full": 1800}
"""Features at the lowest error below the threshold, where validation chooses the ridge."""
WIDEST = {"quick": 2000, "full": 10000}

NET_FIRST, NET_PEAK = {"quick": 8, "full": 8}, {"quick": 48, "full": 64}
NET_WIDEST = {"quick": 512, "full": 256}
NET_POINTS = {"quick": 500, "full": 4000}

SAMPLES = {"quick": (30, 60, 100, 150, 200, 250, 280, 300, 320, 400, 600), "full": (200, 500, 1000, 1500, 3000)}
SAMPLE_FEATURES = {"quick": 300, "full": 1500}
BEST_SMALLER = {"quick": 100, "full": 500}

SHARES = (0.1, 0.2)
NEAR = 0.02 + 1e-9
"""Sizes within this share of n count as the threshold itself (2 %, and rounding)."""


def features(tier: Tier) -> DescentSpec:
    """Random ReLU features, minimum-norm and ridge least squares."""
    if tier == "full":
        return replace(recipe("mnist-features"), replace_one=True)
    return DescentSpec(
        recipe="claims-features",
        data=DataSpec(train_size=200, label_noise=NOISE[tier]),
        model=ModelSpec(name="relu-features"),
        train=TrainSpec(threads=1),
        widths=(10, 25, 50, 100, 150, 180, 196, 200, 204, 220, 300, 500, 1000, 2000),
        ridges=(1e-3, 1e-2, 1e-1, 1.0),
        validation=200,
        replace_one=True,
        seeds=tuple(range(20)),
    )


def trees(tier: Tier) -> DescentSpec:
    """Decision trees on the same points: the classical control."""
    spec = features(tier)
    return replace(
        spec,
        recipe="claims-trees",
        model=ModelSpec(name="tree"),
        widths=(2, 5, 10, 20, 30, 60, 100),
        ridges=(),
        validation=0,
        replace_one=False,
    )


def more_data(tier: Tier) -> DescentSpec:
    """One model on more and more points."""
    spec = features(tier)
    return replace(
        spec,
        recipe="claims-samples",
        widths=(SAMPLE_FEATURES[tier],),
        samples=SAMPLES[tier],
        ridges=(),
        validation=0,
        replace_one=False,
    )


def _network(tier: Tier, name: str) -> DescentSpec:
    spec = recipe("digits-mlp" if tier == "quick" else "mnist-mlp")
    train = replace(ADAM, threads=1, lr=5e-3, epochs=200) if tier == "quick" else spec.train
    return replace(
        spec, recipe=f"claims-{name}", train=train, validation=0, points=3,
        data=replace(spec.data, train_size=NET_POINTS[tier], label_noise=0.0),
    )  # fmt: skip


def networks(tier: Tier) -> DescentSpec:
    """Trained networks along width, with wrong labels."""
    spec = _network(tier, "networks")
    widths = (4, 8, 16, 48, 512) if tier == "quick" else spec.widths
    train = replace(ADAM, threads=1, epochs=400) if tier == "quick" else spec.train
    return replace(spec, widths=widths, train=train, data=replace(spec.data, label_noise=0.2))


def wrong_labels(tier: Tier) -> DescentSpec:
    """A wide network on clean and on wrong labels."""
    return replace(_network(tier, "wrong-labels"), widths=(128,), noises=(0.0, *SHARES))


def random_labels(tier: Tier) -> DescentSpec:
    """A wide network on labels drawn at random; many seeds and test points, because chance is a matter of a point."""
    spec = _network(tier, "random-labels")
    if tier == "full":
        data = replace(spec.data, label_noise=1.0, noise_kind="random")
        return replace(spec, widths=(256,), data=data)
    data = DataSpec(name="superclasses", train_size=320, test_size=4000, label_noise=1.0, noise_kind="random")
    train = replace(spec.train, epochs=350)
    return replace(spec, widths=(64,), data=data, train=train, seeds=tuple(range(40)))


ARMS: dict[str, Arm] = {
    "features": features,
    "trees": trees,
    "more-data": more_data,
    "networks": networks,
    "wrong-labels": wrong_labels,
    "random-labels": random_labels,
}


def _cell(tier: Tier, width: int, antidote: str = NONE) -> str:
    return cell_name(width, POINTS[tier], NOISE[tier], antidote)


def _net_cell(tier: Tier, width: int, noise: float = 0.2) -> str:
    return cell_name(width, NET_POINTS[tier], noise, NONE)


def _width(e: Evidence, tier: Tier) -> list[Clause]:
    n = POINTS[tier]
    widths, errors = e.along("features", "error", "width", antidote="none")
    away = np.abs(np.array(widths)[errors.argmax(1)] / n - 1)
    first, peak, widest = (e.wrong("features", _cell(tier, w)) for w in (FIRST[tier], n, WIDEST[tier]))
    below, tuned = (e.wrong("features", _cell(tier, w, "tuned ridge")) for w in (TUNED_FIRST[tier], n))
    few, top, many = (
        e.wrong("networks", _net_cell(tier, w)) for w in (NET_FIRST[tier], NET_PEAK[tier], NET_WIDEST[tier])
    )
    sizes, train = e.along("networks", "error", "width", split="train", antidote="none")
    at_peak = train[:, sizes.index(NET_PEAK[tier])]
    return [
        mean_clause("features: distance of the peak from N = n", away, "<=", NEAR, unit="of n"),
        paired_clause("features: peak above the first minimum", peak - first, ">", 0.0),
        paired_clause("features: peak above the widest", peak - widest, ">", 0.0),
        *equivalence(paired_clause, "tuned ridge: peak minus lowest below it", tuned - below, 2.0),
        paired_clause("networks: peak above the first minimum", top - few, ">", 0.0),
        paired_clause("networks: peak above the widest", top - many, ">", 0.0),
        mean_clause("networks: training error at the peak, at least", at_peak, ">=", 0.01, unit="share"),
        mean_clause("networks: training error at the peak, at most", at_peak, "<=", 0.10, unit="share"),
    ]


def _samples(e: Evidence, tier: Tier) -> list[Clause]:
    width = SAMPLE_FEATURES[tier]

    def at(samples: int) -> Floats:
        return e.wrong("more-data", cell_name(width, samples, NOISE[tier], NONE))

    most, best, twice = at(width), at(BEST_SMALLER[tier]), at(2 * width)
    return [
        paired_clause("test error at n = N above that at the best smaller n", most - best, ">", 0.0),
        paired_clause("test error at n = N above that at n = 2 N", most - twice, ">", 0.0),
    ]


def _noise(e: Evidence, tier: Tier) -> list[Clause]:
    clauses = []
    twin = e.wrong("wrong-labels", _net_cell(tier, 128, 0.0))
    shares, memorised = e.along("wrong-labels", "memorised", "noise", split="train")
    for q in SHARES:
        wrong = e.wrong("wrong-labels", _net_cell(tier, 128, q))
        told = f"{100 * q:.0f} % wrong labels"
        clauses += [
            mean_clause(f"{told}: share of them fitted", memorised[:, shares.index(q)], ">=", 0.99, unit="share"),
            paired_clause(f"{told}: test error minus the clean twin's", wrong - twin, "<", 100 * q),
            paired_clause(f"{told}: accuracy minus (1 - q) twin's", (1 - wrong) - (1 - q) * (1 - twin), ">", 0.0),
        ]
    return clauses


def _random(e: Evidence, tier: Tier) -> list[Clause]:
    _, train = e.along("random-labels", "error", "width", split="train")
    spec = random_labels(tier)
    samples = spec.data.train_size
    assert samples is not None
    cell = cell_name(spec.widths[0], samples, 1.0, NONE)
    chance = 1 / (16 if tier == "quick" else 10)
    above = 1 - e.wrong("random-labels", cell) - chance
    return [
        mean_clause("training error", train[:, 0], "<=", 0.0, unit="share"),
        *equivalence(paired_clause, "test accuracy minus chance", above, 100 * MARGIN["quick"]),
    ]


def _stable(e: Evidence, tier: Tier) -> list[Clause]:
    n = POINTS[tier]
    sizes, moved = e.along("features", "replace_one", "width")
    near = [w for w in sizes if abs(w / n - 1) <= NEAR]
    elsewhere = [w for w in sizes if w not in near]

    def churn(width: int) -> Floats:
        classes = e.predicted("features", _cell(tier, width))
        # Pairs without a common seed, so that their differences are independent.
        differ: Floats = (classes[0::2][: len(classes) // 2] != classes[1::2]).astype(np.float64)
        return differ

    def replaced(width: int) -> Floats:
        return moved[:, sizes.index(width)]

    at = np.mean([churn(w) for w in near], axis=0)
    most = max(elsewhere, key=lambda w: float(churn(w).mean()))
    at_one = np.mean([replaced(w) for w in near], axis=0)
    most_one = max(elsewhere, key=lambda w: float(replaced(w).mean()))
    one = "one point replaced, predictions moved"
    return [
        paired_clause(f"churn at the threshold minus at {most}, the most elsewhere", at - churn(most), ">", 0.0),
        paired_clause("churn at the threshold minus the widest's", at - churn(WIDEST[tier]), ">", 0.0),
        mean_clause(
            f"{one}: threshold minus {most_one}, the most elsewhere",
            at_one - replaced(most_one),
            ">",
            0.0,
            unit="share",
        ),
        mean_clause(f"{one}: threshold minus widest", at_one - replaced(WIDEST[tier]), ">", 0.0, unit="share"),
    ]


CLAIMS = (
    Claim(
        id="double-descent-width",
        section=SECTION,
        sentence="As the model grows the test error falls, rises to a peak where it can just fit the data, and falls "
        "again; classical models only overfit.",
        source="Belkin et al. 2019; Nakkiran et al. 2020",
        criterion="features: peak within 2 % of N = n; networks: training error at the peak between 1 and 10 %; both: "
        "peak above first minimum and above the widest; tuned ridge: peak equivalent to the lowest error below it "
        "within 2 points",
        control="ridge chosen on validation; decision trees with their U-curve (drawn, not judged)",
        figure="descent",
        arms=("features", "networks", "trees"),
        judge=_width,
        budget=21.0,
    ),
    Claim(
        id="double-descent-samples",
        section=SECTION,
        sentence="More data can hurt.",
        source="Nakkiran et al. 2020",
        criterion="test error at n = N above that at the best smaller n and at 2 N",
        control="the same model on half and on twice the points",
        figure="descent-samples",
        arms=("more-data",),
        judge=_samples,
        budget=2.0,
    ),
    Claim(
        id="fits-noise-yet-generalises",
        section=SECTION,
        sentence="It fits the whole training set, wrong labels included, and usually generalises.",
        source="Zhang et al. 2017",
        criterion="with 10 and 20 % wrong labels: at least 0.99 of them fitted; test error minus the clean twin's "
        "below q; accuracy above (1 - q) times the twin's",
        control="its twin on clean labels",
        figure="descent-noise",
        arms=("wrong-labels",),
        judge=_noise,
        budget=3.0,
    ),
    Claim(
        id="fits-random-labels",
        section=SECTION,
        sentence="It can fit purely random labels.",
        source="Zhang et al. 2017",
        criterion="training error 0; test accuracy at chance within one point",
        control="chance",
        figure="descent-noise",
        arms=("random-labels",),
        judge=_random,
        budget=4.0,
    ),
    Claim(
        id="stability-returns",
        section=SECTION,
        sentence="Beyond the threshold the solution is stable again.",
        source="Belkin et al. 2019; Hardt et al. 2016",
        criterion="churn between seeds, and predictions moved by replacing one point, are highest at the threshold and "
        "lower at the widest model",
        control="every other size",
        figure="descent",
        arms=("features",),
        judge=_stable,
        budget=0.0,
    ),
)
