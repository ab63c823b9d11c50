"""How the weights are distributed: near zero or far from it, evenly or not, over few directions or many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

NEAR = 0.1
"""A weight is near zero when its size is below this share of its layer's initial standard deviation."""


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Weight matrices and kernels by parameter name; biases and normalisation have one axis and are left out."""
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim >= 2}


def initial_scales(model: nn.Module) -> dict[str, float]:
    """Standard deviation (about zero) of every weight matrix, to be taken before training.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> round(initial_scales(layer)["weight"], 4)
    3.5355
    """
    return {name: float(w.double().square().mean().sqrt()) for name, w in matrices(model).items()}


def near_zero_share(model: nn.Module, scales: Mapping[str, float], *, near: float = NEAR) -> float:
    """Share of all weights with |w| < near * initial scale of their layer; layers count by their size.

    Normal weights at initialisation: erf(0.1 / sqrt 2) = 0.0797.

    Raises:
        ValueError: if a weight matrix has no scale, or there is none.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 0.05], [1.0, -2.0]]))
    >>> near_zero_share(layer, {"weight": 1.0})
    0.5
    """
    found = matrices(model)
    missing = [name for name in found if name not in scales]
    if missing or not found:
        raise ValueError(f"no initial scale for {', '.join(missing)}" if missing else "the model has no weight matrix")
    below = sum(int((w.abs() < near * scales[name]).sum()) for name, w in found.items())
    return below / sum(w.numel() for w in found.values())


def gini(values: Tensor) -> float:
    """Gini coefficient of the sizes |x|: 0 where all are equal, 1 - 1/n where one holds everything.

    sum_i (2 i - n - 1) |x|_(i) / (n sum |x|), sorted upwards, i = 1..n. Half-normal sizes: sqrt(2) - 1.

    Raises:
        ValueError: without values, or where all are zero.

    >>> gini(torch.tensor([0.0, 0.0, 0.0, -2.0]))
    0.75
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    x = values.detach().to(wide).abs().flatten().cpu().numpy()
    if not len(x) or not x.max() > 0:
        raise ValueError("the Gini coefficient needs at least one value that is not zero")
    # NumPy's sort takes a third of torch's time, which sorts indices along.
    x, n = np.sort(x).astype(np.float64), len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))


def weights_gini(model: nn.Module, scales: Mapping[str, float]) -> float:
    """Gini coefficient of all weights' sizes, each in units of its layer's initial scale."""
    return gini(torch.cat([w.flatten() / (scales[name] or 1.0) for name, w in matrices(model).items()]))


@dataclass(frozen=True, eq=False)
class WeightSpectrum:
    """Singular values of one weight matrix, or of a kernel read as outputs x (inputs * positions)."""

    singular_values: Tensor
    """(min(m, n),), float64, largest first."""
    shape: tuple[int, int]
    """(m, n)"""

    @property
    def stable_rank(self) -> float:
        """|W|_F^2 / |W|_2^2 in [1, min(m, n)]; nan for the zero matrix."""
        squares = self.singular_values.square()
        return float(squares.sum() / squares[0])

    @property
    def norm(self) -> float:
        """Spectral norm |W|_2."""
        return float(self.singular_values[0])


@torch.no_grad()
def weight_spectra(model: nn.Module) -> dict[str, WeightSpectrum]:
    """Singular values of every weight matrix and kernel, by parameter name.

    A kernel (outputs, inputs, ...) is flattened to outputs x rest: the map from patches to channels, not the spectrum
    of the whole convolution. Independent entries of variance v fill sqrt(v) (sqrt(n) +- sqrt(m)) for large m <= n
    (Marchenko, Pastur 1967).

    Raises:
        ValueError: if the model has no weight matrix, or one is empty or not finite.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> found = weight_spectra(layer)["weight"]
    >>> found.singular_values.tolist(), found.stable_rank
    ([4.0, 3.0], 1.5625)
    """
    found = matrices(model)
    if not found:
        raise ValueError("the model has no weight matrix")
    spectra = {}
    for name, w in found.items():
        a = w.flatten(1).double()
        if not a.numel() or not bool(torch.isfinite(a).all()):
            raise ValueError(f"the weights of {name} are empty, or hold NaN or infinity")
        spectra[name] = WeightSpectrum(torch.linalg.svdvals(a), (a.shape[0], a.shape[1]))
    return spectra
