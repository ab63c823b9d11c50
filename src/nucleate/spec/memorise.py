"""What the memorise study runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Suppress

from nucleate.spec.descent import DescentSpec


@dataclass(frozen=True, kw_only=True)
class MemoriseSpec(DescentSpec):
    """One network on labels of which a growing share is wrong (Zhang et al. 2017)."""

    study: Suppress[Literal["memorise"]] = "memorise"  # type: ignore[assignment]
    recipe: str = "digits"
    widths: tuple[int, ...] = (256,)
    noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    fit_error: float = 0.0
    """Training error at which a network counts as fitting its labels."""
    points: int = 20
