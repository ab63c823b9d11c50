"""Squared loss, split into the parts that collapse removes one by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry.inputs import check_classifier
from nucleate.geometry.moments import Moments


@dataclass(frozen=True)
class SquaredLoss:
    """The three parts of the ridge-regularised squared loss; they sum to it."""

    nc1: float
    """1/2 tr(W_LS (S_W + l I) W_LS^T): within-class spread."""
    nc23: float
    """1/(2C) |W_LS M^T - I|_F^2: class means and least-squares classifier off self-dual simplex position."""
    off_optimum: float
    """1/2 tr((W - W_LS) A (W - W_LS)^T): the classifier's distance from the least-squares one."""
    least_squares: Tensor
    """(C, d + 1) least-squares classifier, its bias last."""

    @property
    def total(self) -> float:
        """(1/2N) sum |W h + b - e_y|^2 + (l/2) |[W, b]|_F^2."""
        return self.nc1 + self.nc23 + self.off_optimum


@torch.no_grad()
def squared_loss(moments: Moments, weight: Tensor, bias: Tensor | None = None, *, ridge: float = 0.0) -> SquaredLoss:
    """Split the squared loss of a linear classifier on balanced classes into NC1, NC2/3 and off-optimum parts.

    With h~ = [h, 1], A = S_W + S_B + mu_G mu_G^T + l I of h~, W_LS = (1/C) M~ A^{-1}.

    Args:
        moments: with second_moment=True, every class with the same number of points.
        weight, bias: (C, d), (C,).
        ridge: l. `nn.MSELoss` averages over N C, so SGD weight decay wd means l = C wd / 2; the authors' notebook
            analyses with l = wd / 2.

    Raises:
        ValueError: without the second moment, for unbalanced classes, or where l = 0 leaves A singular.

    >>> m = Moments(2, 1, second_moment=True)
    >>> m.update(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    >>> parts = squared_loss(m, torch.tensor([[0.5], [-0.5]]), torch.tensor([0.5, 0.5]))
    >>> abs(round(parts.total, 9))
    0.0

    (Han, Papyan, Donoho 2022, arXiv 2106.02073.)
    """
    if moments.outer is None:
        raise ValueError("the decomposition needs the second moment: Moments(..., second_moment=True)")
    check_classifier(weight, bias, moments.num_classes, moments.dim)
    n = moments.counts
    if int(n.min()) != int(n.max()) or not int(n.min()):
        raise ValueError(
            f"the decomposition holds for balanced classes; counts run from {int(n.min())} to {int(n.max())}"
        )
    c, d, total = moments.num_classes, moments.dim, float(n.sum())
    w = weight.new_zeros(c, d + 1, dtype=torch.float64).to(moments.sum.device)
    w[:, :d] = weight
    if bias is not None:
        w[:, d] = bias
    means = torch.cat([moments.means, torch.ones_like(moments.means[:, :1])], 1)
    centre = moments.sum.sum(0) / total
    second = w.new_ones(d + 1, d + 1)
    second[:d, :d] = moments.outer / total
    second[:d, d] = second[d, :d] = centre
    a = second + ridge * torch.eye(d + 1, dtype=w.dtype, device=w.device)
    within = second - means.T @ means / c
    within = within + ridge * torch.eye(d + 1, dtype=w.dtype, device=w.device)
    factor, info = torch.linalg.cholesky_ex(a)
    pivots = factor.diagonal()
    if int(info) or float(pivots.min()) <= 1e-7 * float(pivots.max()):
        raise ValueError("the second moment is singular: give ridge > 0, or more points than dimensions")
    best = torch.cholesky_solve(means.T / c, factor).T
    off = w - best
    miss = best @ means.T - torch.eye(c, dtype=w.dtype, device=w.device)
    return SquaredLoss(
        nc1=float(((best @ within) * best).sum() / 2),
        nc23=float(miss.square().sum() / (2 * c)),
        off_optimum=float(((off @ a) * off).sum() / 2),
        least_squares=best,
    )
