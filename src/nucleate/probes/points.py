"""Points on their way through a probe: batches in any form, a subsample that no batch size changes, a cache."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCH = 128
"""Points that run together when they were given as two tensors."""


class Batches:
    """(inputs, labels) batches on a device, from whatever a user has.

    Args:
        source: two tensors (inputs, labels), or an iterable of pairs, or of dicts with "labels"; inputs may be a
            tensor, a tuple of arguments or a dict of keywords.
        device: where they go.

    Raises:
        ValueError: if there is no batch, or a batch is not a pair.

    >>> batches = Batches((torch.zeros(200, 2), torch.zeros(200, dtype=torch.long)), torch.device("cpu"))
    >>> [len(y) for _, y in batches]
    [128, 72]
    """

    def __init__(self, source: Any, device: torch.device) -> None:
        self.device = device
        self.again = True
        """Whether the batches can be read more than once."""
        self._source: Iterable[Any]
        if isinstance(source, tuple | list) and len(source) == 2 and all(isinstance(s, Tensor) for s in source):
            if len(source[0]) != len(source[1]):
                raise ValueError(f"{len(source[0])} inputs but {len(source[1])} labels; give one label for each point")
            self._source = _Pair(*source)
        elif isinstance(source, Iterable) and not isinstance(source, Tensor | str | Mapping):
            self._source = source
            self.again = not isinstance(source, Iterator)
        else:
            raise ValueError(
                f"batches must be (inputs, labels), or an iterable of such pairs, not {type(source).__name__}"
            )
        self.total = len(self._source) if isinstance(self._source, Sized) else None

    def example(self, rows: int = 2) -> Any:
        """The first inputs of the first batch, which is not used up."""
        iterator = iter(self._source)
        first = next(iterator, None)
        if first is None:
            raise ValueError("there is no batch to probe; an iterator that was read to its end is empty")
        if not self.again:
            self._source = itertools.chain([first], iterator)
        inputs, labels = self._pair(first)
        if not len(labels):
            raise ValueError("there is no point to probe: the first batch is empty")
        return _first_rows(inputs, len(labels), rows)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for batch in self._source:
            yield self._pair(batch)

    def _pair(self, batch: Any) -> tuple[Any, Tensor]:
        if isinstance(batch, Mapping):
            name = next((n for n in ("labels", "label", "targets", "target") if n in batch), None)
            if name is None:
                raise ValueError(f'a batch dict needs "labels"; this one holds {", ".join(map(str, batch))}')
            inputs, labels = {k: v for k, v in batch.items() if k != name}, batch[name]
        elif isinstance(batch, tuple | list) and len(batch) == 2:
            inputs, labels = batch
        else:
            kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
            raise ValueError(f"each batch must be a pair (inputs, labels), not {kind}")
        if not isinstance(labels, Tensor) or labels.ndim != 1:
            got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"the labels of a batch must be a tensor (points,), not {got}")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"the labels of a batch must be integers, the classes 0, 1, ..., not {labels.dtype}")
        return _to(inputs, self.device), labels.to(self.device, torch.int64, non_blocking=True)


class Subsample:
    """A uniform subsample of points that stream past; it does not depend on how they are batched.

    Point i is in if a hash of (seed, i) is among the smallest. Each point gets a slot, which a later one may take.

    >>> few = Subsample(2, seed=0)
    >>> rows, slots = few.enter(1)
    >>> rows.tolist(), len(slots), len(few.order())
    ([0], 1, 1)
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 0:
            raise ValueError(f"the subsample must hold at least 0 points, not {size}")
        self.size, self.seed = size, seed
        self.seen = 0
        self._key = np.full(size, np.iinfo(np.uint64).max, dtype=np.uint64)
        self._index = np.full(size, -1, dtype=np.int64)

    def enter(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows of the next `count` points that come in, and the slots that they take."""
        index = np.arange(self.seen, self.seen + count)
        self.seen += count
        key = _hash(index, self.seed)
        if not self.size:
            return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        both = np.concatenate([self._key, key])
        # Empty slots have the largest key, so they are given up first.
        best = np.argpartition(both, self.size - 1)[: self.size] if len(both) > self.size else np.arange(self.size)
        kept = np.zeros(len(both), dtype=bool)
        kept[best] = True
        rows = np.flatnonzero(kept[self.size :])
        slots = np.flatnonzero(~kept[: self.size])[: len(rows)]
        self._key[slots], self._index[slots] = key[rows], index[rows]
        return torch.from_numpy(rows), torch.from_numpy(slots)

    def order(self) -> Tensor:
        """The taken slots, in the order of the points."""
        taken = np.flatnonzero(self._index >= 0)
        return torch.from_numpy(taken[self._index[taken].argsort()])


SLAB = 64 << 20
"""Bytes of memory that a cache asks for at once."""


class MemoryCache:
    """Features of one layer in main memory.

    They lie in slabs of their own: the first touch of a small page costs as much as the copy into it, so large pages
    are asked for, and between copies that stay the heap could not use a forward pass's memory again.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._slab = torch.empty(0, dtype=torch.uint8)

    def add(self, h: Tensor) -> None:
        """Keep a copy of (N, d) features."""
        size = h.numel() * h.element_size()
        if not size:
            self._parts.append(h.cpu())
            return
        if size > len(self._slab):
            self._slab = _slab(max(size, SLAB))
        part = self._slab[:size].view(h.dtype).view(h.shape)
        # The next part begins at a cache line.
        self._slab = self._slab[-(-size // 64) * 64 :]
        self._parts.append(part.copy_(h.detach()))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._parts)


class DiskCache:
    """Features of one layer in a file, read back batch by batch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._parts: list[tuple[int, ...]] = []
        self._dtype = torch.float32

    def add(self, h: Tensor) -> None:
        """Append (N, d) features.

        Raises:
            OSError: if the disk is full.
        """
        self._dtype = h.dtype
        self._parts.append(tuple(h.shape))
        h.detach().cpu().contiguous().view(torch.uint8).numpy().tofile(self._file)

    def __iter__(self) -> Iterator[Tensor]:
        self._file.close()
        sizes = [math.prod(shape) * self._dtype.itemsize for shape in self._parts]
        # Each batch takes the place of the one before it.
        buffer = torch.empty(max(sizes, default=0), dtype=torch.uint8)
        with self._path.open("rb", buffering=0) as file:
            for shape, size in zip(self._parts, sizes, strict=True):
                part = buffer[:size]
                view = memoryview(part.numpy().data)
                while len(view) and (read := file.readinto(view)):
                    view = view[read:]
                if len(view):
                    raise OSError(f"{self._path} ends {len(view)} bytes early; was it cut short?")
                yield part.view(self._dtype).view(shape)

    def close(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _slab(size: int) -> Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    # Shared memory, which is the default, has small pages whatever is advised.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Advice only: a kernel without large pages refuses it.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class _Pair:
    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return -(-len(self.labels) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.inputs.split(BATCH), self.labels.split(BATCH), strict=True)


def _hash(index: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """The splitmix64 generator at positions of a seed's stream (Steele, Lea, Flood 2014)."""
    offset = (seed * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) % 2**64
    z = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(offset)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, Any] = z ^ (z >> np.uint64(31))
    return mixed


def _first_rows(value: Any, size: int, rows: int) -> Any:
    """The value with its tensors of `size` rows cut to the first ones."""
    if isinstance(value, Tensor):
        return value[:rows] if value.ndim and len(value) == size else value
    if isinstance(value, Mapping):
        return {k: _first_rows(v, size, rows) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_first_rows(v, size, rows) for v in value)
    return value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_to(v, device) for v in value)
    return value
