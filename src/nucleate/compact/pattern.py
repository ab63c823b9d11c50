"""Which weights of a matrix are left, in the order in which the kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4
"""Rows that share an entry in a blocked pattern."""

CACHE = 32 * 1024
"""Bytes of the first-level cache that a segment of the input may fill."""

LEAST_ENTRIES = 18
"""Entries that a row should have in a segment, or its start and end cost more than the cache saves."""

WIDE = 65_536
"""Columns from here on do not fit into 16-bit indices."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Surviving entries of a matrix (rows, columns), sorted by segment of columns, then row, then column.

    With `block` 4, an entry stands for four neighbouring rows, and pointers count blocks; the last block may be cut.
    """

    rows: int
    columns: int
    block: int
    pointers: Tensor
    """(segments, units + 1), int32: entries of a unit of rows in a segment."""
    indices: Tensor
    """(entries,), uint16 while columns fit, else int32: the column of an entry."""
    order: Tensor
    """(entries,) or (entries, 4), int64: where the weights lie in the flat matrix, rows filled up to whole blocks."""

    def gather(self, matrix: Tensor) -> Tensor:
        """Values (entries,) or (entries, 4) of a matrix (rows, columns)."""
        short = -self.rows % self.block
        padded = torch.cat([matrix, matrix.new_zeros(short, self.columns)]) if short else matrix
        return padded.reshape(-1)[self.order]

    def scatter(self, values: Tensor) -> Tensor:
        """The matrix (rows, columns) of values, zero elsewhere."""
        return scatter(values, self.order, self.rows, self.columns)


def scatter(values: Tensor, order: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix (rows, columns) with values at flat positions, zero elsewhere; differentiable in values."""
    size = -(-rows // BLOCK) * BLOCK * columns
    flat = values.new_zeros(size).index_put((order.reshape(-1).long(),), values.reshape(-1))
    return flat[: rows * columns].view(rows, columns)


def pattern(mask: Tensor, *, block: int = 1, window: int = 1, positions: int = 64) -> Pattern:
    """Pattern of the non-zero entries of a mask (rows, columns).

    A segment's share of the input, up to 64 positions of each column (16 for blocks), fills the first-level cache.

    Args:
        mask: any dtype; not 0 where a weight is left.
        block: 1, or 4: an entry is left for all four rows if for one.
        window: neighbouring columns that read overlapping positions, as the columns of a convolution's window do.
        positions: of each column, where they are few.

    Raises:
        ValueError: for another block, a mask that is no matrix, or more than 2^31 - 1 entries.

    >>> p = pattern(torch.tensor([[1, 0, 1], [0, 0, 1]]))
    >>> p.pointers.tolist(), p.indices.tolist(), p.order.tolist()
    ([[0, 2, 3]], [0, 2, 2], [0, 2, 5])
    """
    if mask.dim() != 2:
        raise ValueError(f"a pattern needs a matrix, not a mask of shape {tuple(mask.shape)}")
    if block not in (1, BLOCK):
        raise ValueError(f"entries are single weights or blocks of {BLOCK} rows, not of {block}")
    rows, columns = mask.shape
    kept = mask != 0
    if block == BLOCK:
        short = -rows % BLOCK
        kept = torch.cat([kept, kept.new_zeros(short, columns)]).view(-1, BLOCK, columns).any(1)
    unit, column = kept.nonzero(as_tuple=True)
    if len(unit) * block > 2**31 - 1:
        raise ValueError(f"a layer with {len(unit) * block} weights left exceeds the kernel's 2^31 - 1")
    density = len(unit) / max(1, kept.numel())
    positions = min(positions, 64 if block == 1 else 16)
    width = CACHE // (4 * positions) * window
    width = max(width, int(LEAST_ENTRIES / density) if density else columns, 1)
    segments = max(1, -(-columns // width))
    width = -(-columns // segments)
    place = column // max(1, width) * kept.shape[0] + unit
    by_segment = torch.sort(place, stable=True)
    counts = torch.bincount(place, minlength=segments * kept.shape[0]).view(segments, -1)
    ends = counts.reshape(-1).cumsum(0).view(segments, -1)
    pointers = torch.cat([ends[:, :1] - counts[:, :1], ends], 1) if kept.shape[0] else ends.new_zeros(segments, 1)
    unit, column = unit[by_segment.indices], column[by_segment.indices]
    order = unit * block * columns + column
    if block == BLOCK:
        order = order[:, None] + torch.arange(BLOCK, device=mask.device) * columns
    return Pattern(
        rows=rows,
        columns=columns,
        block=block,
        pointers=pointers.to(torch.int32),
        indices=narrow(column, columns),
        order=order,
    )


def transposed(matrix: Pattern, *, window: int = 1) -> tuple[Pattern, Tensor]:
    """Pattern of the transpose, of single weights, and where its values lie among the flat values of `matrix`.

    >>> t, where = transposed(pattern(torch.tensor([[1, 0, 1], [0, 0, 1]])))
    >>> t.indices.tolist(), where.tolist()
    ([0, 0, 1], [0, 1, 2])
    """
    flat = matrix.order.reshape(-1)
    real = flat < matrix.rows * matrix.columns
    kept = torch.zeros(matrix.rows * matrix.columns, dtype=torch.bool, device=flat.device)
    kept[flat[real]] = True
    turned = pattern(kept.view(matrix.rows, matrix.columns).T, window=window)
    column, row = turned.order // matrix.rows, turned.order % matrix.rows
    place = torch.full((matrix.rows * matrix.columns,), -1, dtype=torch.int64, device=flat.device)
    place[flat[real]] = torch.arange(len(flat), device=flat.device)[real]
    return turned, place[row * matrix.columns + column]


def narrow(indices: Tensor, bound: int) -> Tensor:
    """Indices below `bound` as uint16 if they fit, else int32.

    >>> narrow(torch.tensor([5]), 65_536).dtype, narrow(torch.tensor([5]), 65_537).dtype
    (torch.uint16, torch.int32)
    """
    return indices.to(torch.uint16 if bound <= WIDE else torch.int32)
