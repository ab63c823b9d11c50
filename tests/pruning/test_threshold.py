"""The exact threshold: against sorting everything, for every type, with ties, and where counts pass 2^31."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nucleate.pruning.threshold import BLOCK, Ranked, descend, keep, kth_largest, sortable

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def expected(tensors: list[torch.Tensor], live: list[torch.Tensor | None], k: int) -> list[torch.Tensor]:
    """Stable sort of everything, put together."""
    flat = torch.cat([t.double().flatten() for t in tensors])
    alive = torch.cat([torch.ones(t.numel()) if m is None else m.flatten() for t, m in zip(tensors, live, strict=True)])
    flat = flat.masked_fill(alive == 0, -torch.inf)
    order = flat.sort(descending=True, stable=True).indices
    mask = torch.zeros(len(flat), dtype=torch.uint8)
    mask[order[:k]] = 1
    return [m.view(t.shape) for m, t in zip(mask.split([t.numel() for t in tensors]), tensors, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [True, False])
def test_the_kept_set_is_that_of_a_stable_sort(dtype: torch.dtype, signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    # Few distinct values, so that ties cross tensors and blocks.
    tensors = [
        (torch.randn(shape, generator=generator) * scale).mul(8).round().div(8).to(dtype)
        for shape, scale in (((BLOCK + 7,), 1.0), ((50, 40), 3.0), ((3,), 0.1), ((0,), 1.0))
    ]
    values = tensors if signed else [t.abs() for t in tensors]
    total = sum(t.numel() for t in tensors)
    for k in (0, 1, 2, total // 10, total // 2, total - 1, total):
        found = keep({str(i): Ranked(t, by_size=not signed) for i, t in enumerate(tensors)}, k)
        assert sum(int(m.sum()) for m in found.values()) == k
        for mask, want in zip(found.values(), expected(values, [None] * 4, k), strict=True):
            assert torch.equal(mask, want)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("size", [4000, BLOCK])
def test_pruned_entries_stay_out_of_the_ranking(share: float, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(n, generator=generator) for n in (size, 300)]
    live = [(torch.rand(n, generator=generator) >= share).to(torch.uint8) for n in (size, 300)]
    alive = sum(int(m.sum()) for m in live)
    for k in {1, alive // 2, alive - 1, alive}:
        found = keep({str(i): Ranked(t, m) for i, (t, m) in enumerate(zip(tensors, live, strict=True))}, k)
        for mask, want in zip(found.values(), expected(tensors, list(live), k), strict=True):
            assert torch.equal(mask, want)
    with pytest.raises(ValueError, match=f"earlier rounds left {alive}"):
        keep({str(i): Ranked(t, m) for i, (t, m) in enumerate(zip(tensors, live, strict=True))}, alive + 1)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_keys_sort_as_numbers_do(kind: torch.dtype) -> None:
    wide = torch.float32 if kind == torch.int32 else torch.float64
    tiny, huge = torch.finfo(wide).smallest_normal, torch.finfo(wide).max
    x = torch.tensor([-huge, -1.5, -1.0, -tiny, -tiny / 2, 0.0, tiny / 2, tiny, 1.0, 1.5, huge], dtype=wide)
    keys = sortable(x, kind)
    assert bool((keys[1:] > keys[:-1]).all())
    assert sortable(torch.tensor([-0.0], dtype=wide), kind) == sortable(torch.tensor([0.0], dtype=wide), kind)


def test_counts_past_the_limit_of_32_bits() -> None:
    # Three thousand million zeros and as many ones, as a histogram would count them.
    values = sortable(torch.tensor([0.0, 1.0]), torch.int32)
    many = 3_000_000_000

    def histogram(prefix: int | None, shift: int, bits: int) -> torch.Tensor:
        counts = torch.zeros(1 << bits, dtype=torch.int64)
        for key in values.tolist():
            unsigned = key + (1 << 31)
            if prefix is None or unsigned >> (shift + bits) == prefix:
                counts[(unsigned >> shift) & ((1 << bits) - 1)] += many
        return counts

    assert descend(histogram, many, torch.int32) == (values[1], many, many)
    assert descend(histogram, many + 1, torch.int32) == (values[0], 1, many)
    assert descend(histogram, 2 * many, torch.int32) == (values[0], many, many)
    with pytest.raises(ValueError, match="there are 6000000000"):
        descend(histogram, 2 * many + 1, torch.int32)


@pytest.mark.parametrize("size", [BLOCK, BLOCK + 1])
def test_the_threshold_is_that_of_numpy(size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(3))
    found = kth_largest([Ranked(x)], 12_345)
    want = np.sort(x.numpy())[-12_345]
    assert found.key == int(sortable(torch.tensor([want]), found.kind)) and found.ties == 1
