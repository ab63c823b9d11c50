"""The second pass: within-class variability along the class means, fused with nearest means, logits and boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry.conventions import Convention, convention_named
from nucleate.geometry.inputs import block_rows, check_classifier, check_labels, check_means, check_pair, unit_rows
from nucleate.geometry.means import Span, span
from nucleate.geometry.moments import Moments
from nucleate.machine.matmul import fast_matmul

SMALL = 64
"""Up to this many columns a float64 product costs little, and needs no certificate."""

SUMS = ("count", "square", "resid", "mismatch", "judged", "correct", "tied", "slack", "slack_sq")
"""Names of the additive states, each (C,) float64."""


@dataclass
class _Tables:
    """What a block of points needs, in the dtype of the products."""

    means: Tensor
    """(C, d)"""
    columns: Tensor
    """(d, r [+ C + 1]): V/s, then the classifier's rows and their mean."""
    gram: Tensor
    """(r, P): T' -> inner products with the centred means."""
    offset: Tensor
    """(C, P): what turns them into negative half squared distances, by the point's own class."""
    logits: Tensor | None
    """(C, C): logits of the class means."""


class Projection:
    """Exact trace NC1, NC4, nearest-mean accuracy and boundary distances of points that stream past known means.

    With Mc = A diag(s) V^T and residuals r = h - mu_y, NC1 = (1/N) sum |diag(1/s) V^T r|^2: a sum of squares, so never
    negative; the same products give <r, Mc_c> and with it the nearest mean. Everything is taken from residuals, so
    neither an offset nor a deep collapse costs digits. O(N d C) time, O(C d) memory.

    Args:
        moments: the first pass. Its means judge the points, which may be others (test points by train means).
        weight, bias: classifier (C, d), (C,), for NC4 and boundary distances.
        convention: name or `Convention`; decides the global mean, and whether the bias counts.
        precise: products in float64; by default where they are thin. `certified` says whether float32 was enough.

    >>> x, y = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1])
    >>> m = Moments(2, 1)
    >>> m.update(x, y)
    >>> p = Projection(m)
    >>> p.update(x, y)
    >>> [round(v, 6) for v in p.nc1_per_class.tolist()]  # within variance 1, S_B = 4, C = 2
    [0.125, 0.125]
    """

    def __init__(
        self,
        moments: Moments,
        *,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        means: Tensor | None = None,
        convention: str | Convention = "papyan2020",
        precise: bool | None = None,
    ) -> None:
        check_classifier(weight, bias, moments.num_classes, moments.dim)
        if means is not None:
            check_means(means, moments.num_classes, moments.dim)
        self.convention = convention_named(convention)[1]
        self.num_classes, self.dim = moments.num_classes, moments.dim
        m = moments.means if means is None else means.double().to(moments.sum.device)
        self.span: Span = span(m, moments.counts, mu_g=self.convention.mu_g)
        self.means = m
        self.unit = moments.unit
        self.weight = None if weight is None else weight.detach().to(m)
        zero = m.new_zeros(self.num_classes)
        self.bias = zero if bias is None or self.convention.nc4 == "agreement-without-bias" else bias.detach().to(m)
        self._given_bias = zero if bias is None else bias.detach().to(m)
        width = self.span.rank + (0 if weight is None else self.num_classes + 1)
        self.precise = width <= SMALL if precise is None else precise
        self._tables: dict[torch.dtype, _Tables] = {}
        if self.weight is not None:
            rows = self.weight - self.weight.mean(0)
            norms = torch.linalg.vector_norm(rows, dim=1)
            level = (rows * m).sum(1) + self._given_bias - self._given_bias.mean()
            self._rows, self._row_norms, self._level = rows, norms, level
        self.adopt({name: torch.zeros_like(zero) for name in SUMS})

    count: Tensor
    square: Tensor
    resid: Tensor
    mismatch: Tensor
    judged: Tensor
    correct: Tensor
    tied: Tensor
    slack: Tensor
    slack_sq: Tensor

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, logits: Tensor | None = None) -> None:
        """Add (N, d) features with (N,) labels and, if the forward pass gave them, (N, C) logits.

        Raises:
            ValueError: for wrong shapes, labels out of range, or a label whose class has no mean.
        """
        check_pair(features, labels)
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} dimensions, not {features.shape[1]}")
        if logits is not None and tuple(logits.shape) != (len(features), self.num_classes):
            raise ValueError(f"logits must be ({len(features)}, {self.num_classes}), not {tuple(logits.shape)}")
        device = self.means.device
        labels = labels.to(device, torch.int64)
        if device.type == "cpu":
            check_labels(labels, self.num_classes)
        else:
            # Read nothing back here: the first pass over the points has counted labels out of range.
            labels = labels.clamp(0, self.num_classes - 1)
        dtype = torch.float64 if self.precise or features.dtype == torch.float64 else torch.float32
        tables = self._table(dtype)
        # Wide blocks keep a large product efficient; thin products are bound by memory, so their blocks stay in cache.
        width = tables.columns.shape[1]
        rows = block_rows(self.dim + width, elements=1 << (18 if width <= SMALL else 21))
        with fast_matmul(device):
            for start in range(0, len(features), rows):
                stop = start + rows
                x = features[start:stop].to(device, dtype)
                z = None if logits is None else logits[start:stop].to(device)
                self._block(unit_rows(x) if self.unit else x, labels[start:stop], z, tables)

    def _block(self, x: Tensor, y: Tensor, logits: Tensor | None, t: _Tables) -> None:
        rank = self.span.rank
        # Residuals of float32 points against float32 means are exact where the two are close (Sterbenz).
        r = x - t.means[y]
        k = t.columns.shape[1]
        out = (t.columns.T @ r.T).T if k <= SMALL else r @ t.columns
        inside = out[:, :rank]
        self._add("count", y, torch.ones_like(y, dtype=torch.float64))
        self._add("resid", y, torch.linalg.vector_norm(r, dim=1).double().square_())
        self._add("square", y, torch.linalg.vector_norm(inside, dim=1).double().square_())
        near = (inside @ t.gram).add_(t.offset[y])
        best, where = near.max(1)
        nearest = self.span.present[where]
        self._add("correct", y, nearest == y)
        self._add("tied", y, (near == best[:, None]).sum(1) > 1)
        if logits is not None:
            z = logits - (self._given_bias - self.bias).to(logits)
            self._add("mismatch", y, z.argmax(1) != nearest)
            self._add("judged", y, torch.ones_like(y))
            if self.weight is not None:
                centred = logits.gather(1, y[:, None])[:, 0].double() - logits.mean(1, dtype=torch.float64)
                self._boundary(centred - self._level[y], y)
        elif t.logits is not None:
            part = out[:, rank:-1]
            self._boundary((part.gather(1, y[:, None])[:, 0] - out[:, -1]).double(), y)
            self._add("mismatch", y, (part + t.logits[y]).argmax(1) != nearest)
            self._add("judged", y, torch.ones_like(y))

    def _boundary(self, slack: Tensor, y: Tensor) -> None:
        self._add("slack", y, slack)
        self._add("slack_sq", y, slack.square())

    def _add(self, name: str, y: Tensor, values: Tensor) -> None:
        getattr(self, name).index_add_(0, y, values.double())

    def _table(self, dtype: torch.dtype) -> _Tables:
        if dtype not in self._tables:
            s = self.span
            means = self.means.to(dtype)
            columns = s.basis / s.scale
            # Centred means are A diag(s) V^T, and the projected residual T' = r V/s: r Mc^T = T' diag(s^2) A^T.
            gram = (s.left * s.scale.square()).T
            inner = s.centred @ s.centred.T
            offset = self.means.new_full((self.num_classes, len(s.present)), math.nan)
            offset[s.present] = inner - inner.diagonal() / 2
            logits = None
            if self.weight is not None:
                columns = torch.cat([columns, self.weight.T, self.weight.mean(0)[:, None]], 1)
                logits = (means.double() @ self.weight.T + self.bias).to(dtype)
            columns = columns.T.contiguous().T if columns.shape[1] <= SMALL else columns.contiguous()
            self._tables[dtype] = _Tables(means, columns.to(dtype), gram.to(dtype), offset.to(dtype), logits)
        return self._tables[dtype]

    def merge(self, other: Projection) -> None:
        """Add the sums of another shard, projected on the same means.

        Raises:
            ValueError: if the means or classifiers differ.
        """
        same = torch.equal(torch.nan_to_num(self.means), torch.nan_to_num(other.means.to(self.means.device)))
        if not same or self.convention != other.convention:
            raise ValueError("cannot merge projections on different means; project every shard on the merged means")
        for name, mine in self.sums().items():
            mine += other.sums()[name].to(mine.device)

    def sums(self) -> dict[str, Tensor]:
        """The additive states by name, each (C,) float64, not copied."""
        return {name: getattr(self, name) for name in SUMS}

    def adopt(self, sums: Mapping[str, Tensor]) -> None:
        """Count on in these tensors, in place: a metric's states, say."""
        for name in SUMS:
            setattr(self, name, sums[name])

    @property
    def certified(self) -> bool:
        """Whether rounding of the products can have moved NC1 by no more than 1e-4 of itself; always true in float64.

        Their error in a point's projection is at most about u |r| |1/s|; against the projections themselves that bounds
        the relative error, and so does what float32 leaves off the means.
        """
        if self.precise or torch.float32 not in self._tables or not self.span.rank:
            return True
        used = self.count > 0
        square, resid = self.square[used].sum(), self.resid[used].sum()
        # A mean rounded to float32 adds n |delta|^2 to the sum of squares.
        delta = (self.means - self.means.float().double())[used]
        shift = (self.count[used] * (delta @ (self.span.basis / self.span.scale)).square().sum(1)).sum()
        u = torch.finfo(torch.float32).eps
        error = 2 * u * torch.sqrt(resid * self.span.scale.pow(-2).sum() / square)
        return bool(error < 1e-4) and bool(shift < 1e-5 * square)

    @property
    def nc1_per_class(self) -> Tensor:
        """tr(S_c S_B^+)/C of every class, (C,) float64, with S_B = Mc^T Mc / C; nan without points."""
        return self.square / self.count if self.span.rank else torch.full_like(self.count, math.nan)

    def share(self, name: str) -> float:
        """Share of the points counted under "mismatch", "correct" or "tied"; nan if none was judged."""
        total = self.judged if name == "mismatch" else self.count
        return float(getattr(self, name).sum() / total.sum())

    def boundary(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, by class, of the signed distance to the class's own hyperplane, (C,), (C,).

        The distance is (<w_y - w, h> + b_y - b) / |w_y - w| with w, b the mean row and bias.
        """
        if self.weight is None:
            nan = torch.full_like(self.count, math.nan)
            return nan, nan.clone()
        off = self.slack / self.count
        variance = (self.slack_sq / self.count - off.square()).clamp(min=0)
        return (self._level + off) / self._row_norms, variance.sqrt() / self._row_norms
