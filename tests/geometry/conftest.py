from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def cloud():
    """A maker of classes around random means: float32 features, labels, weight and bias."""

    def make(
        c: int, d: int, n: int, *, sigma: float = 0.5, offset: float = 0.0, seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        means = torch.randn(c, d, generator=g, dtype=torch.float64) + offset
        labels = torch.arange(c * n) % c
        x = means[labels] + sigma * torch.randn(c * n, d, generator=g, dtype=torch.float64)
        return x.float(), labels, torch.randn(c, d, generator=g), torch.randn(c, generator=g)

    return make
