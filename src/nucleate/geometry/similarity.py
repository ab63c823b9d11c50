"""How alike two layers are: linear CKA on all points, and unbiased CKA from batches. A similarity: 1 is alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nucleate.geometry._checks import check_points


@torch.no_grad()
def cka(x: Tensor, y: Tensor) -> float:
    """Compare two layers by |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F), centred; 1 if equal up to rotation and scale.

    Two collapsed layers read 1 whatever came before, and chance is not 0: see `cka_chance`. nan if a layer is constant.

    Args:
        x: (N, p) features of one layer.
        y: (N, q) of another, for the same points.

    Raises:
        ValueError: for different numbers of points, NaN, or fewer than two points.

    Kornblith, Norouzi, Lee, Hinton 2019 (arXiv 1905.00414).

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    >>> round(cka(x, 3 * x.flip(1) + 1), 6)
    1.0
    """
    check_points(x, "cka, first layer")
    check_points(y, "cka, second layer")
    if len(x) != len(y):
        raise ValueError(f"cka: the layers must hold the same points, not {len(x)} and {len(y)}")
    if len(x) < 2:
        raise ValueError("cka needs at least two points")
    a, b = _standard(x), _standard(y)
    if len(x) < max(a.shape[1], b.shape[1]):
        k, m = a @ a.T, b @ b.T
        cross, xx, yy = (k * m).sum(), k.square().sum(), m.square().sum()
    else:
        cross, xx, yy = (b.T @ a).square().sum(), (a.T @ a).square().sum(), (b.T @ b).square().sum()
    return float(cross / (xx * yy).sqrt())


def cka_chance(n: int, p: int, q: int) -> float:
    """Linear CKA of independent isotropic Gaussian layers: sqrt(p q / ((N-1+p)(N-1+q))).

    >>> round(cka_chance(200, 300, 500), 2)
    0.66
    """
    return math.sqrt(p * q / ((n - 1 + p) * (n - 1 + q)))


class BatchedCKA:
    """Compare every layer with every other from batches: the unbiased HSIC, averaged, then divided. Chance is 0.

    HSIC1(K, L) = sum K~ * L~ / (B (B - 3)), where ~ removes the diagonal and centres without bias (the same number as
    [tr K'L' + sum K' sum L' / ((B-1)(B-2)) - 2/(B-2) 1'K'L'1] / (B (B-3))). One Gram matrix for each layer and batch.

    Nguyen, Raghu, Kornblith 2021 (arXiv 2010.15327); Song et al. 2012 (JMLR 13).

    >>> same = BatchedCKA(["a", "b"])
    >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    >>> same.update({"a": x, "b": -2 * x + 1})
    >>> round(float(same.compute()[0, 1]), 6)
    1.0
    """

    def __init__(self, layers: Sequence[str], others: Sequence[str] | None = None) -> None:
        """`others`: layers of a second network; the same layers if none.

        Raises:
            ValueError: for no layers or repeated names.
        """
        self.layers = tuple(layers)
        self.others = self.layers if others is None else tuple(others)
        self.shared = others is None
        for names in (self.layers, self.others):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"layer names must be distinct and at least one, not {list(names)}")
        self.cross = torch.zeros(len(self.layers), len(self.others), dtype=torch.float64)
        self.own = torch.zeros(len(self.layers), dtype=torch.float64)
        self.own_others = torch.zeros(len(self.others), dtype=torch.float64)
        self.batches = 0

    @torch.no_grad()
    def update(self, features: Mapping[str, Tensor], others: Mapping[str, Tensor] | None = None) -> None:
        """Add one batch: (B, d) features of every layer, B >= 4 (and of every layer of the second network).

        Raises:
            ValueError: for missing or unknown names, B < 4, unequal batches, or NaN, naming the layer.
        """
        if (others is None) != self.shared:
            raise ValueError("give others= in update if, and only if, it was given at the start")
        x = self._centred(features, self.layers)
        y = x if others is None else self._centred(others, self.others)
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"the two networks saw {x.shape[1]} and {y.shape[1]} points; give them the same batch")
        size = x.shape[1]
        x, y = x.flatten(1), y.flatten(1)
        scale = size * (size - 3)
        self.cross += (x @ y.T).cpu() / scale
        self.own += x.square().sum(1).cpu() / scale
        self.own_others += y.square().sum(1).cpu() / scale
        self.batches += 1

    def merge(self, other: BatchedCKA) -> None:
        """Add the batches that another object saw.

        Raises:
            ValueError: if its layers differ.
        """
        if (self.layers, self.others, self.shared) != (other.layers, other.others, other.shared):
            raise ValueError("only objects with the same layers can be merged")
        self.cross += other.cross
        self.own += other.own
        self.own_others += other.own_others
        self.batches += other.batches

    def compute(self) -> Tensor:
        """The (layers, others) matrix of similarities, float64; nan for constant layers, which `reasons` names.

        Raises:
            ValueError: before the first batch.
        """
        if self.batches == 0:
            raise ValueError("no batch was given yet; call update first")
        scale = (self.own[:, None] * self.own_others).sqrt()
        return torch.where(scale > 0, self.cross / scale, math.nan)

    @property
    def reasons(self) -> dict[str, str]:
        """Why a layer's row or column is nan."""
        pairs = [*zip(self.layers, self.own.tolist(), strict=True)]
        pairs += zip(self.others, self.own_others.tolist(), strict=True)
        return {name: f"layer {name!r} is constant in every batch" for name, own in pairs if own == 0}

    def _centred(self, features: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
        """The stack (layers, B, B) of Gram matrices without diagonal, centred without bias."""
        if set(features) != set(names):
            missing, extra = sorted(set(names) - set(features)), sorted(set(features) - set(names))
            raise ValueError(f"layers do not match: missing {missing}, unknown {extra}")
        sizes = {name: len(features[name]) for name in names}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"every layer must see the same batch, not {sizes} points")
        size = sizes[names[0]]
        if size < 4:
            raise ValueError(
                f"unbiased CKA needs batches of at least 4 points, not {size}; drop the last batch or join it"
            )
        grams = []
        for name in names:
            check_points(features[name], f"layer {name!r}")
            a = _centre(features[name])
            k = (a @ a.T).fill_diagonal_(0)
            row = k.sum(1) / (size - 2)
            k = k - row[:, None] - row + row.sum() / (size - 1)
            grams.append(k.fill_diagonal_(0))
        return torch.stack(grams)


def _centre(x: Tensor) -> Tensor:
    """Centred in float64; exact zeros for a constant layer, which rounding of its mean would make noise."""
    wide = x.double()
    return torch.zeros_like(wide) if bool((x == x[0]).all()) else wide - wide.mean(0)


def _standard(x: Tensor) -> Tensor:
    """Centred, largest entry 1: CKA does not see the scale, and fourth powers stay in range."""
    wide = _centre(x)
    top = wide.abs().max()
    return wide / top if top > 0 else wide
