"""Exact kernels of infinitely wide fully connected ReLU networks, in float64, row block by row block.

The network, in NTK parametrisation with c = 2 and L = depth hidden layers:

    h_0 = x,   z_l = sqrt(c / m_l) W_{l+1} h_l + b B_{l+1}   (no factor at the input),   h_l = relu(z_{l-1}),   f = z_L

with all W and B standard normal and b^2 the bias variance. Other texts use c = 1 or divide the input by sqrt(d); their
kernels differ by those factors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from nucleate.kernels.points import check_points

BLOCK = 1 << 22
"""Entries of a row block: about 32 MB for each of a handful of temporaries."""


def ntk(x: Tensor, x2: Tensor | None = None, *, depth: int, bias: float = 0.0, frozen: Collection[int] = ()) -> Tensor:
    r"""Neural tangent kernel (n, n2) of a ReLU network with `depth` hidden layers of infinite width, float64.

    T_h = s_h S_h + k0 T_{h-1}, where S_h are the `nngp` kernels, k0 = (pi - arccos l) / pi at their cosine l, and
    s_h = 0 for a frozen weight layer, else 1. On the diagonal, without bias, T_L(x, x) = (L + 1 - frozen) |x|^2.

    Args:
        x: points (n, ...), flattened.
        x2: points (n2, ...); x itself if none.
        depth: hidden layers L; 0 is the linear model.
        bias: standard deviation b of the biases.
        frozen: weight layers (0 .. depth, the input's first) that are not trained, with their biases.

    Raises:
        ValueError: for a negative depth, a layer that is not there, or points that are no tensor of finite (n, ...) or
            of different sizes.

    Jacot, Gabriel, Hongler 2018; the recursion as in Arora et al. 2019 (1904.11955).

    >>> ntk(torch.tensor([[3.0, 4.0]]), depth=2).item()  # (L + 1) |x|^2
    75.0
    """
    layers = set(frozen)
    if not layers <= set(range(depth + 1)):
        raise ValueError(f"frozen must name weight layers 0 .. {depth}, not {sorted(layers)}")
    return _assemble(x, x2, depth, bias, layers)


def nngp(x: Tensor, x2: Tensor | None = None, *, depth: int, bias: float = 0.0) -> Tensor:
    r"""Covariance (n, n2) of the untrained network's output at infinite width, float64.

    S_0 = <x, z> + b^2, S_h = |x|_h |z|_h (l (pi - arccos l) + sqrt(1 - l^2)) / pi + b^2, with |x|_h^2 = S_{h-1}(x, x)
    and l the cosine of S_{h-1}. Without bias S_h(x, x) = |x|^2 at every depth. Arguments and errors as in `ntk`.

    >>> round(nngp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), depth=1).item(), 6)  # 1 / pi
    0.31831
    """
    return _assemble(x, x2, depth, bias, None)


def _assemble(x: Tensor, x2: Tensor | None, depth: int, bias: float, frozen: set[int] | None) -> Tensor:
    if depth < 0:
        raise ValueError(f"depth must be at least 0, not {depth}")
    if not (math.isfinite(bias) and bias >= 0):
        raise ValueError(f"bias is a standard deviation, at least 0, not {bias}")
    check_points(x)
    if x2 is not None:
        check_points(x2, "x2")
    a = x.flatten(1).double()
    b = a if x2 is None else x2.flatten(1).double()
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"points of {a.shape[1]} and of {b.shape[1]} values have no common kernel")
    out = a.new_empty(len(a), len(b))
    for rows in _blocks(len(a), len(b)):
        out[rows] = _kernel(a[rows], b, depth, bias**2, frozen, rows.start if x2 is None else None)
    return (out + out.T).div_(2) if x2 is None else out


def _blocks(n: int, n2: int) -> Iterator[slice]:
    size = max(1, BLOCK // max(1, n2))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _kernel(a: Tensor, b: Tensor, depth: int, variance: float, frozen: set[int] | None, offset: int | None) -> Tensor:
    """One row block; the diagonal starts at column `offset`, where rounding must not enter the arc cosine."""
    products = a @ b.T + variance
    left, right = a.square().sum(1) + variance, b.square().sum(1) + variance
    if offset is not None:
        products.diagonal(offset).copy_(left)
    tangent = torch.zeros_like(products) if frozen is not None and 0 in frozen else products
    for h in range(1, depth + 1):
        size = left.sqrt()[:, None] * right.sqrt()[None, :]
        cosine = torch.where(size > 0, products / size, 0.0).clamp_(-1, 1)
        if offset is not None:
            cosine.diagonal(offset).fill_(1.0)
        angle = math.pi - cosine.arccos()
        products = size * (cosine * angle + (1 - cosine * cosine).sqrt()) / math.pi + variance
        left, right = left + variance, right + variance
        if offset is not None:
            products.diagonal(offset).copy_(left)
        if frozen is not None:
            tangent = tangent * angle / math.pi
            if h not in frozen:
                tangent = tangent + products
    return products if frozen is None else tangent
