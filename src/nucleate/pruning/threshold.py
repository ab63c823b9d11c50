"""The exact k-th largest of many tensors, found without ever putting them together.

Floating-point numbers of one sign sort like their bit patterns, so the k-th largest is found digit by digit:
a histogram of the leading bits, tensor by tensor and block by block, tells in which bin it lies; then the
next bits of the entries in that bin; and so on. Counts are int64, so memory is the only limit on the number of
entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 17
"""Entries worked on at a time: their keys stay in the cache."""

_DIGITS = {torch.int32: (16, 16), torch.int64: (16, 16, 16, 16)}
_SIGN = {torch.int32: -(1 << 31), torch.int64: -(1 << 63)}


@dataclass(frozen=True)
class Ranked:
    """One tensor to be ranked.

    `by_size` ranks |x| without computing it; entries where `live` is 0 rank below all others and are never counted.
    """

    values: Tensor
    live: Tensor | None = None
    by_size: bool = False

    def blocks(self, kind: torch.dtype) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Keys of successive entries, in index order, with the live flags of those entries."""
        flat = self.values.reshape(-1)
        live = None if self.live is None else self.live.reshape(-1)
        for start in range(0, flat.numel(), BLOCK):
            part = None if live is None else live[start : start + BLOCK]
            yield sortable(flat[start : start + BLOCK], kind, by_size=self.by_size), part


def sortable(x: Tensor, kind: torch.dtype, *, by_size: bool = False) -> Tensor:
    """Integers, zero upwards in their unsigned reading, that sort as the numbers do; -0.0 and 0.0 are the same.

    Non-negative numbers keep their bits with the sign bit set, negative ones have all bits flipped.

    >>> keys = sortable(torch.tensor([-2.0, -0.0, 0.0, 1.0]), torch.int32)
    >>> bool((keys[1:] - keys[:-1] >= 0).all()), bool(keys[1] == keys[2])
    (True, True)
    """
    wide = torch.float32 if kind == torch.int32 else torch.float64
    # The sum turns -0.0 into 0.0 and copies, so that the keys can be made in place.
    x = x.abs() if by_size else x + 0.0
    bits = x.to(wide).view(kind)
    # In two's complement the sign bit already orders negative before positive: only negatives need their rest flipped.
    return bits if by_size else torch.where(bits < 0, bits ^ ~_SIGN[kind], bits)


@dataclass(frozen=True)
class Threshold:
    """The k-th largest: keep all keys above it, and the first `equal` of the `ties` at it."""

    key: int
    kind: torch.dtype
    equal: int
    ties: int


def kth_largest(tensors: Iterable[Ranked], k: int) -> Threshold:
    """Key of the k-th largest live entry of all tensors, and how many entries equal to it are among the k.

    Raises:
        ValueError: unless there are at least k >= 1 live entries.

    >>> found = kth_largest([Ranked(torch.tensor([3.0, 1.0])), Ranked(torch.tensor([1.0, 1.0]))], 3)
    >>> found.equal, found.ties  # 3.0 is kept, and two of the three ones
    (2, 3)
    """
    held = list(tensors)
    kind = torch.int64 if any(r.values.dtype == torch.float64 for r in held) else torch.int32
    if sum(r.values.numel() for r in held) <= BLOCK:
        return _by_partition(held, k, kind)

    def histogram(prefix: int | None, shift: int, bits: int) -> Tensor:
        return _histogram(held, kind, prefix, shift, bits)

    key, equal, ties = descend(histogram, k, kind)
    return Threshold(key, kind, equal, ties)


def _by_partition(tensors: list[Ranked], k: int, kind: torch.dtype) -> Threshold:
    """The same where all keys fit into the cache: the bins of a histogram would be more than they are."""
    blocks = [block for ranked in tensors for block in ranked.blocks(kind)]
    parts = [(keys if live is None else keys[live.bool()]).cpu() for keys, live in blocks]
    keys = torch.cat([torch.empty(0, dtype=kind), *parts]).numpy()
    if not 1 <= k <= len(keys):
        raise ValueError(f"cannot keep {k} entries: there are {len(keys)}")
    key = np.partition(keys, -k)[-k]
    ties = int((keys == key).sum())
    return Threshold(int(key), kind, k - int((keys > key).sum()), ties)


def descend(histogram: Callable[[int | None, int, int], Tensor], k: int, kind: torch.dtype) -> tuple[int, int, int]:
    """Find the k-th largest key from histograms of its digits, most significant first; how many are kept of how many.

    `histogram(prefix, shift, bits)` counts, among the keys whose leading digits are `prefix` (all, if none), the
    next `bits` bits above `shift`. Only these counts are added, in int64.
    """
    digits = _DIGITS[kind]
    remaining, prefix, shift = k, None, sum(digits)
    for bits in digits:
        shift -= bits
        counts = histogram(prefix, shift, bits).cpu().numpy()
        # Entries in a bin and all above it; the first bin from the top that has enough is the one.
        above = counts[::-1].cumsum()
        place = int(np.searchsorted(above, remaining))
        if place == len(above):
            raise ValueError(f"cannot keep {k} entries: there are {k - remaining + int(above[-1])}")
        digit = len(counts) - 1 - place
        ties = int(counts[digit])
        remaining -= int(above[place]) - ties
        prefix = digit if prefix is None else (prefix << bits) | digit
    assert prefix is not None
    # Back from the unsigned reading, in which the sign bit was flipped, to the key.
    return prefix + _SIGN[kind], remaining, ties


def _histogram(tensors: list[Ranked], kind: torch.dtype, prefix: int | None, shift: int, bits: int) -> Tensor:
    """Counts, in int64, of one digit of the keys that begin with a prefix."""
    size = 1 << bits
    total = torch.zeros(size, dtype=torch.int64)
    above = sum(_DIGITS[kind]) - shift - bits
    for ranked in tensors:
        for keys, live in ranked.blocks(kind):
            if prefix is None:
                # The shift keeps the sign; half the range more is the unsigned reading.
                digit = (keys >> shift) + size // 2
                if live is not None:
                    digit = torch.where(live.bool(), digit, size)
            else:
                inside = (keys >> (shift + bits)) == prefix - (1 << (above - 1))
                if live is not None:
                    inside &= live.bool()
                digit = (_chosen(keys, inside) >> shift) & (size - 1)
            total += torch.bincount(digit, minlength=size)[:size].to("cpu")
    return total


def _chosen(x: Tensor, mask: Tensor) -> Tensor:
    """x[mask]: numpy is four times faster at it, where few are chosen."""
    return torch.from_numpy(x.numpy()[mask.numpy()]) if x.device.type == "cpu" else x[mask]


def keep_mask(ranked: Ranked, at: Threshold, used: int = 0) -> tuple[Tensor, int]:
    """uint8 mask of the entries above a threshold and of the first `equal` ones at it, `used` of which came before.

    Returns the number used now as well.
    """
    mask = torch.empty(ranked.values.numel(), dtype=torch.uint8, device=ranked.values.device)
    start = 0
    for keys, live in ranked.blocks(at.kind):
        out = mask[start : start + keys.numel()].view(torch.bool)
        start += keys.numel()
        if at.equal == at.ties:
            torch.ge(keys, at.key, out=out)
        else:
            torch.gt(keys, at.key, out=out)
        if live is not None:
            out &= live.bool()
        if at.equal < at.ties and used < at.equal:
            same = keys == at.key
            if live is not None:
                same &= live.bool()
            first = same.nonzero()[: at.equal - used, 0]
            out[first] = True
            used += first.numel()
    return mask.view(ranked.values.shape), used


def ones(mask: Tensor) -> int:
    """Number of entries of a uint8 mask that are not 0; numpy counts bytes fastest."""
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(torch.count_nonzero(mask))


def keep(tensors: Mapping[str, Ranked], k: int) -> dict[str, Tensor]:
    """uint8 masks of the k largest live entries of all tensors; equal ones are kept in order of name and index.

    Raises:
        ValueError: if fewer than k entries are live.

    >>> keep({"a": Ranked(torch.tensor([0.0, 5.0])), "b": Ranked(torch.tensor([5.0, 5.0]))}, 2)
    {'a': tensor([0, 1], dtype=torch.uint8), 'b': tensor([1, 0], dtype=torch.uint8)}
    """
    live = sum(r.values.numel() if r.live is None else ones(r.live) for r in tensors.values())
    if k > live:
        raise ValueError(f"cannot keep {k} weights: earlier rounds left {live}; a density only falls")
    if k in (0, live):
        whole = {
            name: torch.full(r.values.shape, int(k > 0), dtype=torch.uint8, device=r.values.device)
            for name, r in tensors.items()
        }
        return {name: m if (r := tensors[name].live) is None or not k else (r != 0).to(m) for name, m in whole.items()}
    threshold = kth_largest(tensors.values(), k)
    out, used = {}, 0
    for name, ranked in tensors.items():
        out[name], used = keep_mask(ranked, threshold, used)
    return out


def extremes(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value, nan if there is any: tells what is finite, and what is all zero, in one pass.

    >>> extremes(torch.tensor([1.0, -2.0]))
    (-2.0, 1.0)
    """
    if not x.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(x)
    return float(low), float(high)


def finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(math.isfinite(value) for value in extremes(x))
