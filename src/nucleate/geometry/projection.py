"""The second pass: within-class variability along the class means, fused with nearest means, logits and boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry import native
from nucleate.geometry.conventions import Convention, convention_named
from nucleate.geometry.inputs import block_rows, check_classifier, check_labels, check_means, check_pair, unit_rows
from nucleate.geometry.means import Frame, Span, pair_distances, span
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
    """(d, w): V/s, then for few classes the classifier's rows and their mean; zeros up to a multiple of 8, because
    products with an odd number of columns run at half the speed."""
    judging: bool
    """Whether the classifier's rows are among the columns."""
    gram: Tensor
    """(r, P): T' -> inner products with the centred means."""
    offset: Tensor
    """(C, P): what turns them into negative half squared distances, by the point's own class."""
    radius: Tensor
    """(C,): a residual shorter than this leaves the point nearest to its own mean, and classified as that."""
    rows: Tensor | None
    """(C, d): the classifier's rows without their mean."""
    weight: Tensor | None
    """(d, C)"""
    logits: Tensor | None
    """(C, C): logits of the class means."""


Found = dict[str, Tensor]
"""What each point adds to the `SUMS`, (N,) float64 by name."""


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
        self.frame: Frame | None = None
        zero = m.new_zeros(self.num_classes)
        self.bias = zero if bias is None or self.convention.nc4 == "agreement-without-bias" else bias.detach().to(m)
        self._given_bias = zero if bias is None else bias.detach().to(m)
        self.precise = self.span.rank + self.num_classes <= SMALL if precise is None else precise
        self._tables: dict[torch.dtype, _Tables] = {}
        if self.weight is not None:
            rows = self.weight - self.weight.mean(0)
            norms = torch.linalg.vector_norm(rows, dim=1)
            level = (rows * m).sum(1) + self._given_bias - self._given_bias.mean()
            self._rows, self._row_norms, self._level = rows, norms, level
            self.frame = Frame(rows)
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
        rows = block_rows(self.dim + width, elements=1 << (20 if width <= SMALL else 22))
        points = len(features)
        # What outlives a block is allocated before the first: small results between the large temporaries of a block
        # would keep their memory from being used again.
        values = self.means.new_zeros(points, len(SUMS))
        found = {name: values[:, i] for i, name in enumerate(SUMS)}
        buffer = tables.means.new_empty(min(rows, points), self.dim)
        with fast_matmul(device):
            for start in range(0, points, rows):
                part = slice(start, start + rows)
                x = features[part].to(device, dtype)
                z = None if logits is None else logits[part].to(device)
                here = {name: value[part] for name, value in found.items()}
                self._block(unit_rows(x) if self.unit else x, labels[part], z, tables, buffer, here)
        found["count"].fill_(1)
        found["slack_sq"].copy_(found["slack"]).square_()
        found["judged"].fill_(logits is not None or tables.weight is not None)
        total = values.new_zeros(self.num_classes, len(SUMS)).index_add_(0, labels, values)
        for name, mine in self.sums().items():
            mine += total[:, SUMS.index(name)]

    def _block(self, x: Tensor, y: Tensor, logits: Tensor | None, t: _Tables, buffer: Tensor, found: Found) -> None:
        """Squared lengths of residuals and of T', slack at the own boundary, nearest means and largest logits."""
        rank = self.span.rank
        rows = t.rows if logits is None and not t.judging else None
        r, length, out = _residuals(x, y, t, rows, buffer, found["slack"])
        found["resid"].copy_(length).square_()
        inside, products = out[:, :rank], None
        if logits is not None and self.weight is not None:
            mean = logits.mean(1, dtype=torch.float64)
            found["slack"].copy_(logits.gather(1, y[:, None])[:, 0] - mean - self._level[y])
        elif t.judging:
            products = out[:, rank : rank + self.num_classes]
            found["slack"].copy_(products.gather(1, y[:, None])[:, 0] - out[:, rank + self.num_classes])
        found["square"].copy_(torch.linalg.vector_norm(inside, dim=1)).square_()
        if logits is not None:
            self._compare(r, inside, products, y, logits, t, found)
            return
        # By Cauchy and Schwarz, a short residual cannot reach another class's cell: in the terminal phase this spares
        # most points the products with all C means and classifier rows.
        found["correct"].fill_(1)
        index = (length >= t.radius.index_select(0, y)).nonzero()[:, 0]
        if len(index) == len(y):
            self._compare(r, inside, products, y, None, t, found)
        elif len(index):
            some = {name: found[name][index] for name in ("correct", "tied", "mismatch")}
            products = None if products is None else products.index_select(0, index)
            if products is None:
                r = r.index_select(0, index)
            self._compare(r, inside.index_select(0, index), products, y.index_select(0, index), None, t, some)
            for name, value in some.items():
                found[name][index] = value

    def _compare(
        self,
        r: Tensor,
        inside: Tensor,
        products: Tensor | None,
        y: Tensor,
        logits: Tensor | None,
        t: _Tables,
        found: Found,
    ) -> None:
        """Nearest mean and largest logit of points that may have left their class's cell."""
        near = (inside @ t.gram).add_(t.offset.index_select(0, y))
        best, where = near.max(1)
        nearest = self.span.present[where]
        found["correct"].copy_(nearest == y)
        found["tied"].copy_((near == best[:, None]).sum(1) > 1)
        if logits is not None:
            z = logits - (self._given_bias - self.bias).to(logits)
        elif t.weight is not None and t.logits is not None:
            z = (r @ t.weight if products is None else products) + t.logits.index_select(0, y)
        else:
            return
        found["mismatch"].copy_(z.argmax(1) != nearest)

    def _table(self, dtype: torch.dtype) -> _Tables:
        if dtype not in self._tables:
            s = self.span
            columns = s.basis / s.scale
            # Centred means are A diag(s) V^T, and the projected residual T' = r V/s: r Mc^T = T' diag(s^2) A^T.
            gram = (s.left * s.scale.square()).T
            offset = self.means.new_full((self.num_classes, len(s.present)), math.nan)
            offset[s.present] = s.frame.gram - s.frame.gram.diagonal() / 2
            w = self.weight
            logits = None if w is None else self.means @ w.T + self.bias
            judging = w is not None and s.rank + self.num_classes < SMALL
            if w is not None and judging:
                columns = torch.cat([columns, w.T, w.mean(0)[:, None]], 1)
            self._tables[dtype] = _Tables(
                means=self.means.to(dtype).contiguous(),
                columns=native.padded(columns.to(dtype)),
                judging=judging,
                gram=gram.to(dtype),
                offset=offset.to(dtype),
                radius=self._radius(logits).to(dtype),
                rows=None if w is None else self._rows.to(dtype),
                weight=None if w is None else w.T.to(dtype).contiguous(),
                logits=None if logits is None else logits.to(dtype),
            )
        return self._tables[dtype]

    def _radius(self, logits: Tensor | None) -> Tensor:
        """Per class, the residual length below which neither the nearest mean nor the largest logit can change.

        Another mean j comes nearer only past |mu_y - mu_j| / 2; another logit is larger only past its gap at the class
        mean over |w_y - w_j|. A small allowance covers rounding.
        """
        s = self.span
        radius = self.means.new_zeros(self.num_classes)
        apart = s.distances.clone().fill_diagonal_(math.inf)
        radius[s.present] = apart.amin(1).sqrt() / 2
        if logits is not None and self.frame is not None:
            gap = logits.diagonal()[:, None] - logits
            reach = (gap / pair_distances(self.frame).sqrt()).fill_diagonal_(math.inf)
            # Equal rows have no reach: whoever has the larger bias wins everywhere, which the full product finds.
            radius = torch.minimum(radius, torch.nan_to_num(reach, nan=0.0, posinf=math.inf).amin(1))
        rounding = 1e-6 * torch.nan_to_num(torch.linalg.vector_norm(self.means - s.centre, dim=1))
        return torch.nan_to_num(radius * (1 - 1e-4), nan=0.0, posinf=math.inf) - rounding

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
        u = torch.finfo(torch.float32).eps
        if not bool(2 * u * torch.sqrt(resid * self.span.scale.pow(-2).sum() / square) < 1e-4):
            return False
        # A mean rounded to float32 adds n |delta|^2 to the sum of squares; the bound by the least s spares a product.
        delta = (self.means - self.means.float().double())[used]
        if float((self.count[used] * delta.square().sum(1)).sum()) < 1e-5 * float(
            square * self.span.scale[-1].square()
        ):
            return True
        shift = (self.count[used] * (delta @ (self.span.basis / self.span.scale)).square().sum(1)).sum()
        return bool(shift < 1e-5 * square)

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


def _residuals(
    x: Tensor, y: Tensor, t: _Tables, rows: Tensor | None, buffer: Tensor, slack: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points minus their means, in the buffer; their lengths; their products with the columns.

    With `rows` the product with each point's row goes to `slack`. Residuals of float32 points against float32 means are
    exact where the two are close (Sterbenz).
    """
    r = buffer[: len(x)]
    thin = t.columns.shape[1] <= SMALL
    if native.takes(x):
        length = x.new_empty(len(x))
        along = None if rows is None else x.new_empty(len(x), dtype=torch.float64)
        out = native.residuals(
            x, y, t.means, rows=rows, columns=t.columns if thin else None, residual=r, length=length, slack=along
        )
        if along is not None:
            slack.copy_(along)
        return r, length, r @ t.columns if out is None else out
    if rows is None:
        torch.sub(x, torch.index_select(t.means, 0, y, out=r), out=r)
        length = torch.linalg.vector_norm(r, dim=1)
    else:
        length = x.new_empty(len(x))
        # In blocks that stay in cache.
        step = block_rows(x.shape[1])
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            here = torch.index_select(t.means, 0, y[part], out=r[part])
            torch.sub(x[part], here, out=here)
            torch.linalg.vector_norm(here, dim=1, out=length[part])
            slack[part] = torch.linalg.vecdot(here, rows.index_select(0, y[part]))
    # A thin product is faster with the points along its long side.
    return r, length, (t.columns.T @ r.T).T if thin else r @ t.columns
