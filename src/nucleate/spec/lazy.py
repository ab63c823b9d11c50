"""What the lazy study runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec


@dataclass(frozen=True, kw_only=True)
class LazySpec:
    """Wide shallow ReLU networks beside the neural tangent kernel of their infinite width, at the same time."""

    study: Literal["lazy"] = "lazy"
    recipe: str = "digits"
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """One ladder of networks for each seed, all on the same points."""
    data: DataSpec = field(default_factory=lambda: DataSpec(train_size=500))
    """Points are scaled to length 1."""
    widths: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    """Units of the hidden layer, in NTK parametrisation."""
    steps: int = 2000
    """Steps of full-batch gradient descent on squared loss."""
    rate_share: float = 0.25
    """Step size as a share of the largest stable one, 2 n / lambda_max of the kernel."""
    probe: int = 100
    """Held-out points on which the networks' own kernels are taken."""
    noises: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Shares of wrong labels at which the kernel's bound stands beside its error."""
    threads: int | None = None
    """Threads of the run; as many as cores if none."""
