"""What a network draws while it trains (dropout, say): from torch's global generators, which are borrowed for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator

from nucleate.data.sources import generator


def cuda_index(device: str | torch.device) -> int | None:
    """Number of a CUDA device, the current one's where none is named; None of any other device.

    >>> cuda_index("cuda:1"), cuda_index("cpu")
    (1, None)
    """
    place = torch.device(device)
    if place.type != "cuda":
        return None
    return torch.cuda.current_device() if place.index is None else place.index


@contextmanager
def borrowed(device: str | torch.device) -> Iterator[list[Generator]]:
    """The global generators that a network on a device draws from: the CPU's and the device's own; put back after.

    >>> before = torch.get_rng_state()
    >>> with borrowed("cpu"):
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    found, index = [torch.default_generator], cuda_index(device)
    if index is not None:
        torch.cuda.init()
        found.append(torch.cuda.default_generators[index])
    states = [g.get_state() for g in found]
    try:
        yield found
    finally:
        for g, state in zip(found, states, strict=True):
            g.set_state(state)


@contextmanager
def seeded(seed: int, purpose: str, device: str | torch.device) -> Iterator[None]:
    """Global draws that are a function of seed and purpose alone, and move no other.

    >>> with seeded(0, "epoch 1", "cpu"):
    ...     first = torch.rand(3)
    >>> with seeded(0, "epoch 1", "cpu"):
    ...     torch.equal(torch.rand(3), first)
    True
    """
    with borrowed(device) as found:
        for g in found:
            g.manual_seed(generator(seed, purpose).initial_seed())
        yield
