"""The variability collapse index, which needs the whole d x d scatter."""

from __future__ import annotations

import torch

from nucleate.geometry.moments import Moments


@torch.no_grad()
def vci(moments: Moments) -> float:
    """Variability collapse index 1 - tr(S_T^+ S_B)/min(d, C - 1), all point-weighted; 0 at collapse.

    Invariant to invertible linear maps; identically 0 for N - 1 <= d. (Xu, Liu 2023, arXiv 2306.03440.)

    Raises:
        ValueError: without a second moment, or for N - 1 <= d.

    >>> m = Moments(2, 1, second_moment=True)
    >>> m.update(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]))
    >>> round(vci(m), 6)  # 1 - S_B / S_T = 1 - 4/5
    0.2
    """
    if moments.outer is None:
        raise ValueError("VCI needs the second moment: Moments(..., second_moment=True)")
    n = moments.count
    total = n.sum()
    if total - 1 <= moments.dim:
        raise ValueError(f"VCI is identically 0 with {int(total)} points in {moments.dim} dimensions")
    centre = moments.sum.sum(0) / total
    used = n > 0
    spread = (moments.means[used] - centre) * (n[used, None] / total).sqrt()
    values, vectors = torch.linalg.eigh(moments.outer / total - torch.outer(centre, centre))
    # Below this, a direction of the total scatter is rounding of the raw second moment.
    floor = moments.dim * torch.finfo(torch.float64).eps * float(moments.outer.diagonal().sum() / total)
    keep = values > floor
    explained = float(((spread @ vectors[:, keep]).square() / values[keep]).sum())
    return 1 - explained / min(moments.dim, int(used.sum()) - 1)
