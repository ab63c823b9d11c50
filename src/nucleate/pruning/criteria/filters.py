"""One value an output, from weights and normalisation: no data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nucleate.pruning.criteria.given import Given
from nucleate.pruning.units import norm_after


def fpgm(given: Given) -> dict[str, Tensor]:
    """Sum of the distances from an output's weights to those of all other outputs of its layer.

    The smallest lies nearest the geometric median and is best replaced by the others (He et al. 2019, FPGM). Signed
    weights: F and -F are far apart. Distances in float64, from differences.
    """
    out = {}
    for name, w in given.weights.items():
        rows = given.layouts[name].rows(w.detach()).double()
        out[name] = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    return out


def bn_scale(given: Given) -> dict[str, Tensor]:
    """|gamma| of the batch normalisation after the layer, after training with an L1 penalty on it (Liu et al. 2017)."""
    return {name: norm.weight.detach().abs() for name, norm in _norms(given).items()}


def expected_bn(given: Given) -> dict[str, Tensor]:
    """Expected value after ReLU of a normalised output, taken as normal with mean beta and deviation |gamma|.

    beta Phi(beta / |gamma|) + |gamma| phi(beta / |gamma|); max(beta, 0) where gamma = 0 (Bartoldson et al. 2020).
    """
    out = {}
    for name, norm in _norms(given).items():
        gamma, beta = norm.weight.detach().double().abs(), norm.bias.detach().double()
        safe = torch.where(gamma > 0, gamma, 1.0)
        z = beta / safe
        value = beta * torch.special.ndtr(z) + gamma * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        out[name] = torch.where(gamma > 0, value, beta.clamp_min(0))
    return out


def _norms(given: Given) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Batch normalisation of each scored layer: the one defined right after it, of as many channels.

    Raises:
        ValueError: if no scored layer has one, or one of them is not affine.
    """
    after = norm_after(given.model)
    out: dict[str, nn.modules.batchnorm._BatchNorm] = {}
    for name in given.weights:
        layer = name.rpartition(".")[0]
        if layer not in after:
            continue
        norm = given.model.get_submodule(after[layer])
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if not norm.affine:
            raise ValueError(f"the batch normalisation after {layer} has no scale: it is not affine")
        out[name] = norm
    if not out:
        raise ValueError("no prunable layer is followed by a batch normalisation: this method has nothing to score")
    given.used["unscored"] = [name for name in given.weights if name not in out]
    return out
