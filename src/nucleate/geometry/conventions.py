"""Papers disagree on factors, squares, means and splits; every number says whose convention it follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How one source computes NC1 to NC4; what it leaves open follows papyan2020."""

    source: str
    nc1: Literal["trace", "trace-sum", "quotient", "cdnv"] = "trace"
    """trace: tr(S_W S_B^+)/C; trace-sum: not divided by C; quotient: tr S_W / tr S_B; cdnv: mean over pairs."""
    mu_g: Literal["class", "sample"] = "class"
    """Global mean: of the class means, or of the points."""
    within: Literal["sample", "class"] = "sample"
    """Weights of tr S_W: every point, or every class, counts the same."""
    centre_weights: bool = True
    """Compare geometry by W minus its mean row, the part that the softmax sees."""
    nc3: Literal["difference", "gram", "cosine", "subspace"] = "difference"
    """|nrm W - nrm Mc|_F^2; |nrm(W Mc^T) - E|_F; mean 1 - cos; mean cosine of principal angles (1 is closest)."""
    nc4: Literal["mismatch", "agreement-without-bias", "accuracy"] = "mismatch"
    """Share of points where the classifier and the nearest class mean differ; agreement; nearest-mean accuracy."""
    unc3: Literal["cosine", "dot"] = "cosine"
    """UNC3 is the variance over classes of cos(w_c, mu_c - mu_G), or of their dot product."""
    ddof: int = 0
    """Of the standard deviation in the equinorm measure."""
    unit: bool = False
    """Features are scaled to length one first."""
    rank_floor: bool = False
    """Compare with an ETF even where none exists (C > d + 1); the value then has a floor above 0."""


CONVENTIONS: dict[str, Convention] = {
    "papyan2020": Convention(source="Papyan, Han, Donoho 2020, PNAS 117(40):24652"),
    "papyan_notebook": Convention(
        source="the notebook of Papyan, Han, Donoho 2020", nc1="trace-sum", centre_weights=False, ddof=1
    ),
    "zhu2021": Convention(source="Zhu et al. 2021", mu_g="sample", centre_weights=False, nc3="gram"),
    "han2022": Convention(
        source="Han, Papyan, Donoho 2022, arXiv 2106.02073", nc1="trace-sum", centre_weights=False, ddof=1
    ),
    "rangamani2023": Convention(
        source="Rangamani et al. 2023",
        mu_g="sample",
        within="class",
        centre_weights=False,
        nc3="subspace",
        nc4="accuracy",
    ),
    "jiang2023": Convention(
        source="Jiang et al. 2023, arXiv 2310.05351",
        mu_g="sample",
        centre_weights=False,
        nc3="cosine",
        nc4="accuracy",
        unit=True,
    ),
    "tirer2023": Convention(source="Tirer, Huang, Niles-Weed 2023", nc1="quotient"),
    "galanti2021": Convention(source="Galanti, György, Hutter 2021, arXiv 2112.15121", nc1="cdnv"),
    "wu2024": Convention(
        source="Wu, Papyan 2024, arXiv 2405.17767",
        centre_weights=False,
        nc3="gram",
        nc4="agreement-without-bias",
        unc3="dot",
        rank_floor=True,
    ),
}
"""Name -> convention. `dataclasses.replace` one of them to make your own and pass it instead of a name."""


def convention_named(convention: str | Convention) -> tuple[str, Convention]:
    """Name and convention of either.

    Raises:
        ValueError: for an unknown name, with the known ones.

    >>> convention_named("tirer2023")[1].nc1
    'quotient'
    """
    if isinstance(convention, Convention):
        known = [name for name, value in CONVENTIONS.items() if value == convention]
        return (known[0] if known else "custom"), convention
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; known: {', '.join(CONVENTIONS)}")
    return convention, CONVENTIONS[convention]
