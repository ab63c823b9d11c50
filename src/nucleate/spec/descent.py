"""What the descent study runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nucleate.spec.parts import DataSpec, ModelSpec, TrainSpec


@dataclass(frozen=True, kw_only=True)
class DescentSpec:
    """One family of models along width, samples, label noise and epochs, from too small to far too large."""

    study: Literal["descent"] = "descent"
    recipe: str = "digits-features"
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Models of each size, trained side by side: weights, label noise and data order are drawn anew for each seed."""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    """relu-features, fourier-features (closed form of so many features), tree (of so many leaves), or a network."""
    train: TrainSpec = field(default_factory=TrainSpec)
    """How networks are trained; epochs count at the largest sample, smaller ones take as many steps."""
    widths: tuple[int, ...] = (64,)
    """Model sizes; model.width is not read."""
    samples: tuple[int, ...] = ()
    """Training points; data.train_size alone if empty."""
    noises: tuple[float, ...] = ()
    """Shares of wrong labels; data.label_noise alone if empty."""
    ridges: tuple[float, ...] = ()
    """Penalties of the closed form beside none, and of the one that validation chooses."""
    decays: tuple[float, ...] = ()
    """Weight decays of networks beside train.weight_decay."""
    distil: float = 0.0
    """Temperature at which networks also learn the softened outputs of the widest one, trained on the same labels, in
    the place of labels (Hinton et al. 2015); 0 for none."""
    densities: tuple[float, ...] = ()
    """Kept shares of the weights to which networks are pruned, one after another: the largest over all layers stay, go
    back to their start and are trained again."""
    controls: tuple[Literal["random", "reinit"], ...] = ("random", "reinit")
    """What is trained beside the pruned networks: random masks of the same layer densities, the same masks with fresh
    weights."""
    validation: int = 0
    """Training points set aside, labels as noisy as the others', to choose the ridge and the epoch; 0 for none."""
    replace_one: bool = False
    """Also fit the closed form with one training point replaced by a validation point, to see how much that moves."""
    landscape: bool = False
    """Also measure sharpness, margins, norms and the weight noise that networks stand, at the end; for an audit."""
    epsilon: float = 0.0
    """Largest change of an input, as a share of its full range, by which PGD attacks networks at the end; 0: none."""
    fit_error: float = 0.05
    """Training error at which a model counts as fitting its points: it marks the interpolation threshold."""
    refine: int = 0
    """Sizes added between the last that does not fit and the first that does."""
    points: int = 8
    """Log-spaced epochs at which networks are measured, beside the start."""
