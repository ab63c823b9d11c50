"""What `collapse` returns."""

from __future__ import annotations

import dataclasses
import html
import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Collapse:
    """Neural collapse of one set of features. 0 is full collapse unless said otherwise; nan has an entry in `reasons`.

    Tensors and dicts are for looking closer; `asdict` gives the numbers alone.
    """

    num_classes: int
    """C, absent classes included."""
    dim: int
    """d"""
    counts: Tensor
    """(C,) points of each class."""
    absent: tuple[int, ...]
    """Classes without points, left out of every mean, pair and argmin."""
    convention: str
    """Whose nc1, nc2, nc3, nc4 these are."""
    rank: int
    """Directions of the centred means that were used, min(d, C - 1) unless means are degenerate."""
    condition: float
    """Largest singular value of the centred means over the smallest used."""
    mean_norm: float
    """Mean length of the centred class means."""
    nc1: float
    """Within-class variability, by default tr(S_W S_B^+)/C."""
    nc1_quotient: float
    """tr S_W / tr S_B"""
    nc1_cdnv: float
    """Class-distance normalised variance, mean over pairs."""
    nc1_vci: float
    """1 - tr(S_T^+ S_B)/min(d, C - 1)"""
    nc1_within: float
    """tr S_W"""
    nc1_between: float
    """tr S_B"""
    nc1_per_class: Tensor
    """(C,) trace form of each class; its n_c/N-weighted mean is the trace form of all."""
    nc1_per_pair: Tensor
    """(C, C) CDNV of each pair."""
    nc2_equinorm: float
    nc2_equiangle: float
    nc2_max_angle: float
    nc2_etf: float
    nc2_equinorm_weights: float
    nc2_equiangle_weights: float
    nc2_max_angle_weights: float
    nc2_etf_weights: float
    nc3: float
    """Self-duality in the convention's form, by default |nrm W - nrm Mc|_F^2."""
    nc3_gram: float
    """|nrm(W Mc^T) - E|_F"""
    nc3_cosine: float
    """Mean over classes of 1 - cos(w_c, mu_c - mu_G)."""
    nc3_unc: float
    """Its variance over classes (of the dot product under wu2024)."""
    nc3_subspace: float
    """Mean cosine of the principal angles between classifier and means; 1 at collapse."""
    bias_collapse: float
    """|W mu_G + b|, centred where the weights are."""
    nc4: float
    """Share of points where the classifier differs from the nearest class mean (the convention's form)."""
    ncc_accuracy: float
    """Share of points whose nearest class mean is their own; 1 at collapse."""
    boundary_mean: float
    """Mean over classes of the mean signed distance of their points to their own hyperplane."""
    boundary_spread: float
    """Mean over classes of that distance's std / |mean|."""
    minority_angle: float
    """Mean cosine of the classifier rows of the classes with fewer points than average; 1 when they have merged."""
    gnc2_margin: float
    """Smallest one-vs-rest margin of the unit centred means, for C > d + 1; larger is better."""
    gnc2_optimum: float
    """The largest margin possible, or an upper bound of it."""
    nc4_ties: float
    """Share of points with two nearest means (the lower index counts)."""
    chance: dict[str, float] = field(default_factory=dict)
    """Value of each measure on structureless features."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a value is nan, or what to know about it."""

    def asdict(self) -> dict[str, float]:
        """The numbers by name, per-class and per-pair values left out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: float(v) for name, v in values.items() if isinstance(v, int | float)}

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v:.4g}" for k, v in self.asdict().items() if not math.isnan(v))
        return f"Collapse({self.convention}: {shown})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td><td>{_level(self.chance.get(name))}</td>"
            f"<td>{html.escape(self.reasons.get(name, ''))}</td></tr>"
            for name, value in self.asdict().items()
        )
        return (
            f"<table><caption>Neural collapse, {html.escape(self.convention)}</caption>"
            f"<tr><th>measure</th><th>value</th><th>chance</th><th>note</th></tr>{rows}</table>"
        )


def _level(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
