"""Exact nearest neighbours: a cheap blocked product proposes, differences in float64 decide, a proven bound certifies.

1. Points are centred, ordered by norm and coded (`_codes`); blocks of -(distance^2)/2 come from a matrix product each.
   Without queries only the blocks on and above the diagonal are formed; each serves its rows and its columns.
2. The k-th smallest upper bound so far is a threshold for each point; whatever has its lower bound beneath it is kept.
   Group maxima (strided, so that they vectorise) find both, and only the groups that were hit are opened.
3. The k best candidates are measured by differences, which tightens the threshold; so are those still beneath it.
No other point can be nearer, because its proven lower bound exceeds the k-th exact distance. A row with too many
candidates goes to the next, more precise code, and in the end to differences against every point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nucleate.geometry._codes import RATE, Code, Name, Pair, available, encode, fit, interval, suits

BLOCK = 1024
CANDIDATES = 1024
"""A row with more candidates than this is handed to a more precise code."""
PAIR_COST = 100.0
"""Time of one exact distance over one float32 product of the same length, measured."""


_FAR = -1.5 * 2**28
"""int8 products of real points stay above this (`suits`), those with padding or with itself below."""


class BoundBroken(ArithmeticError):
    """A product was further off than its bound: this machine's arithmetic is not what the code assumes."""


@dataclass
class Found:
    """The k nearest of each row, by (distance, index); `certified` rows were settled by the bound."""

    distances: Tensor
    indices: Tensor
    certified: Tensor
    codes: tuple[str, ...]


@contextmanager
def full_float32() -> Iterator[None]:
    """Products in the precision of their operands, whatever the caller's autocast and matmul precision are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def search(x: Tensor, query: Tensor | None, k: int, prefilter: str = "auto") -> Found:
    """The k nearest rows of x to each row of `query`, or to each row of x without itself."""
    rows = x if query is None else query
    # Any centre is valid; the mean of a thousand rows is close enough, and float32 digits make its subtraction exact.
    centre = _sample(x, 1024).double().mean(0).float().double()
    reach = max(_reach(x, centre), _reach(rows, centre))
    scale = 1.0 if reach == 0 else 2.0 ** -math.ceil(math.log2(reach))
    found = Found(
        torch.full((len(rows), k), math.nan, dtype=torch.float64, device=x.device),
        torch.full((len(rows), k), -1, dtype=torch.int64, device=x.device),
        torch.zeros(len(rows), dtype=torch.bool, device=x.device),
        (),
    )
    ladder = _ladder(x, query, k, centre, scale) if prefilter == "auto" else _from(prefilter)
    with full_float32():
        for name in ladder:
            todo = (~found.certified).nonzero()[:, 0]
            if len(todo) == 0:
                break
            code = fit(name, centre, scale, _sample(x, 256))
            if not suits(code, x.shape[1]):
                continue
            symmetric = query is None and 3 * len(todo) > len(x)
            scan = Scan(x, None if symmetric else rows, todo, k, code, itself=query is None)
            try:
                scan.run(found)
            except BoundBroken:
                found.certified[todo] = False
            found.codes = (*found.codes, name)
    for i in (~found.certified).nonzero()[:, 0].tolist():
        distances = _differences(rows[i], x)
        if query is None:
            distances[i] = math.inf
        found.distances[i], found.indices[i] = _smallest(distances, k)
    return found


class Scan:
    """One pass of one code over all pairs of rows and points."""

    def __init__(
        self, x: Tensor, rows: Tensor | None, todo: Tensor, k: int, code: Code, *, itself: bool = True
    ) -> None:
        """`rows` none: every point is a row and the product is symmetric; `itself`: row i is point i."""
        self.x, self.k, self.itself, self.symmetric = x, k, itself, rows is None
        self.rows = x if rows is None else rows
        self.group = 32
        while self.group > 1 and len(x) < 16 * k * self.group:
            self.group //= 2
        self.points = encode(x, code, multiple=self.group)
        if rows is None:
            self.queries = self.points
        else:
            self.queries = encode(rows, code, todo, multiple=self.group)
        size = len(self.queries.values)
        self.best = torch.full((size, k), math.inf, dtype=torch.float64, device=x.device)
        self.count = torch.zeros(size, dtype=torch.int64, device=x.device)
        self.kept: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in _blocks(size)]

    def run(self, found: Found) -> None:
        """Fill in every row that this code can certify."""
        columns = _blocks(len(self.points.values))
        for number, block in enumerate(_blocks(len(self.queries.values))):
            for other, column in enumerate(columns):
                if self.symmetric and other < number:
                    continue
                pair = Pair(self.queries, self.points, block, column)
                h = pair.product()
                if self.symmetric and other == number:
                    h.fill_diagonal_(-(2**30) if h.dtype == torch.int32 else -math.inf)
                elif self.itself and not self.symmetric:
                    self._mask_self(h, block, column)
                self._keep(h, number, pair)
                if self.symmetric and other > number:
                    self._keep(h.T, other, pair.transposed())
            self._settle(number, block, found)

    def _mask_self(self, h: Tensor, block: slice, column: slice) -> None:
        row, point = self.queries.order[block], self.points.order[column]
        same = (row[:, None] == point).nonzero()
        h[same[:, 0], same[:, 1]] = -(2**30) if h.dtype == torch.int32 else -math.inf

    def _keep(self, h: Tensor, number: int, pair: Pair) -> None:
        """Lower the rows' thresholds by this block and keep what lies beneath them."""
        height, width = h.shape
        stride = width // self.group
        if h.is_contiguous():
            top = h.view(height, self.group, stride).amax(1).double()
        else:
            top = h.T.view(self.group, stride, height).amax(0).T.double()
        block = pair.row
        best = torch.cat([self.best[block], pair.upper(top)], 1).topk(self.k, dim=1, largest=False).values
        self.best[block] = best
        threshold = pair.threshold(best[:, -1])
        threshold[self.count[block] > CANDIDATES] = math.inf
        hits = (top >= threshold[:, None]).nonzero()
        row, group = hits[:, 0], hits[:, 1]
        offsets = torch.arange(self.group, device=h.device) * stride
        col = group[:, None] + offsets
        values = h[row[:, None], col].double()
        keep = (values >= threshold[row, None]) & (values > (_FAR if h.dtype == torch.int32 else -math.inf))
        row = row[:, None].expand_as(col)[keep]
        self.count[block] += torch.bincount(row, minlength=height)
        self.kept[number].append((row, col[keep] + pair.col.start, values[keep]))

    def _settle(self, number: int, block: slice, found: Found) -> None:
        """Measure the candidates of a block of rows and write the nearest."""
        row, col, h = (torch.cat(parts) for parts in zip(*self.kept[number], strict=True))
        self.kept[number] = []
        order = self.queries.order[block]
        height = len(order)
        fits = (self.count[block] <= CANDIDATES)[:height]
        keep = row < height
        keep[keep.clone()] &= fits[row[keep]]
        row, col, h = row[keep], col[keep], h[keep]
        low, high = interval(self.queries, self.points, row + block.start, col, h)
        point = self.points.order[col]
        place = _Ragged(row, height, self.k)
        approx = place.pad(low + high, math.inf)
        where = place.pad(torch.arange(len(row), device=row.device), -1)
        first = where.gather(1, approx.topk(self.k, dim=1, largest=False).indices)[fits]
        if bool((first < 0).any()):
            # Bounds that hold keep at least the k nearest of every row.
            raise BoundBroken
        exact = torch.full_like(low, math.inf)
        scale2 = self.queries.code.scale**2
        limit = torch.full((height,), -math.inf, dtype=torch.float64, device=row.device)
        if bool(fits.any()):
            exact[first] = self._measure_rows(order[fits], point[first])
            limit[fits] = exact[first].amax(1).square() * scale2 * (1 + 1e-9)
        more = (torch.isinf(exact) & (low <= limit[row])).nonzero()[:, 0]
        exact[more] = self._measure_pairs(order[row[more]], point[more])
        seen = torch.isfinite(exact)
        square = exact[seen].square() * scale2
        if bool(((square < low[seen] * (1 - 1e-9) - 1e-290) | (square > high[seen] * (1 + 1e-9) + 1e-290)).any()):
            raise BoundBroken
        row, exact, point = row[seen], exact[seen], point[seen]
        by_index = point.argsort()
        row, exact, point = row[by_index], exact[by_index], point[by_index]
        place = _Ragged(row, height, self.k)
        distances, which = place.pad(exact, math.inf).sort(dim=1, stable=True)
        indices = place.pad(point, -1).gather(1, which)
        target = order[fits]
        found.distances[target] = distances[fits, : self.k]
        found.indices[target] = indices[fits, : self.k]
        found.certified[target] = True

    def _measure_rows(self, rows: Tensor, points: Tensor) -> Tensor:
        """Distances of some rows to a few points each, by differences in float64, in pieces that stay in cache."""
        parts = []
        step = max(1, 2**17 // (self.x.shape[1] * self.k))
        for row, point in zip(torch.split(rows, step), torch.split(points, step), strict=True):
            difference = self.x.index_select(0, point.flatten()).double().view(*point.shape, -1)
            difference -= self.rows.index_select(0, row).double()[:, None]
            parts.append(difference.square_().sum(2))
        return torch.cat(parts).sqrt() if parts else points.double()

    def _measure_pairs(self, rows: Tensor, points: Tensor) -> Tensor:
        """The same for pairs."""
        parts = []
        step = max(1, 2**17 // self.x.shape[1])
        for row, point in zip(torch.split(rows, step), torch.split(points, step), strict=True):
            difference = self.x.index_select(0, point).double()
            difference -= self.rows.index_select(0, row).double()
            parts.append(difference.square_().sum(1))
        return torch.cat(parts).sqrt() if parts else points.double()


class _Ragged:
    """Values that belong to rows, as a matrix of at least `width` columns, in the order given."""

    def __init__(self, row: Tensor, height: int, width: int) -> None:
        order = row.argsort(stable=True)
        counts = torch.bincount(row, minlength=height)
        rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
        self.width = max(int(counts.max()), width)
        self.size = height * self.width
        self.place = torch.empty_like(row)
        self.place[order] = row[order] * self.width + rank

    def pad(self, values: Tensor, fill: float) -> Tensor:
        out = values.new_full((self.size,), fill)
        out[self.place] = values
        return out.view(-1, self.width)


def _ladder(x: Tensor, query: Tensor | None, k: int, centre: Tensor, scale: float) -> list[Name]:
    """The cheapest code by estimated time, then the more precise ones, judged on a few rows and columns."""
    names = available(x.device)
    inner = _Sample(x, 2048)
    outer = inner.thinned(16) if query is None else _Sample(query, 16)
    a, b = (outer.rows.double() - centre) * scale, (inner.rows.double() - centre) * scale
    squares = torch.einsum("nd,nd->n", a, a)[:, None] + torch.einsum("nd,nd->n", b, b) - 2 * (a @ b.T)
    if query is None:
        squares[outer.places[:, None] == inner.places] = math.inf
    share = len(x) / len(inner.places)
    nth = min(max(1, round(k / share)), squares.shape[1])
    kth = squares.kthvalue(nth, dim=1).values[:, None]
    cost: dict[Name, float] = {}
    for name in names:
        code = fit(name, centre, scale, inner.rows[:256])
        if not suits(code, x.shape[1]):
            continue
        rows, cols = encode(outer.rows, code), encode(inner.rows[:256], code)
        slack = (rows.slack + cols.slack.mean())[rows.order.argsort(), None]
        radius = (rows.radius + cols.radius.mean())[rows.order.argsort(), None]
        counts = []
        for times in (1, 3):
            reach = torch.minimum(kth + times * slack, (kth.clamp_min(0).sqrt() + times * radius).square())
            counts.append(share * float((squares <= reach).sum(1).double().mean()))
        if name == "float64" or counts[1] < CANDIDATES / 2:
            cost[name] = len(x) / (2 if query is None else 1) / RATE[name] + PAIR_COST * (counts[0] + k)
    best = min(cost, key=lambda name: cost[name])
    return list(names[names.index(best) :])


class _Sample:
    """Evenly spaced rows and their places."""

    def __init__(self, x: Tensor, count: int, places: Tensor | None = None) -> None:
        step = max(1, len(x) // count)
        self.x = x
        self.places = torch.arange(0, len(x), step, device=x.device)[:count] if places is None else places
        self.rows = x.index_select(0, self.places)

    def thinned(self, count: int) -> _Sample:
        return _Sample(self.x, count, self.places[:: max(1, len(self.places) // count)][:count])


def _from(prefilter: str) -> list[Name]:
    """The named code and the more precise ones after it."""
    names = list(RATE)
    if prefilter not in RATE:
        raise ValueError(f"prefilter must be 'auto' or one of {', '.join(names)}, not {prefilter!r}")
    return names[[str(name) for name in names].index(prefilter) :]


def _sample(x: Tensor, count: int) -> Tensor:
    """Evenly spaced rows."""
    return x[:: max(1, len(x) // count)][:count]


def _reach(x: Tensor, centre: Tensor) -> float:
    """A bound on the norm of the centred rows."""
    if len(x) == 0:
        return 0.0
    low, high = x.amin(0).double() - centre, x.amax(0).double() - centre
    return float(torch.maximum(low.abs(), high.abs()).norm())


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


def _differences(row: Tensor, x: Tensor) -> Tensor:
    """Distances of one row to every point, by differences in float64."""
    step = max(1, 2**17 // x.shape[1])
    return torch.cat([(part.double() - row.double()).square_().sum(1) for part in torch.split(x, step)]).sqrt()


def _smallest(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest by (value, index)."""
    values, indices = distances.sort(stable=True)
    return values[:k], indices[:k]
