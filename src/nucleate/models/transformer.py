"""Small causal transformer over bytes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 32
"""Width of an attention head."""


class Attention(nn.Module):
    """Causal self-attention with heads of 32 (Vaswani et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) of (N, T, width); position t sees positions 0 .. t."""
        n, t, width = x.shape
        q, k, v = (
            m(x).view(n, t, self.heads, width // self.heads).transpose(1, 2) for m in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.out(mixed.transpose(1, 2).reshape(n, t, width)))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with four times the width inside (Radford et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) of (N, T, width)."""
        x = x + self.attention(self.norm1(x))
        return x + cast(Tensor, self.down(self.act(self.up(self.norm2(x)))))


class Transformer(nn.Module):
    """Embeddings of bytes and of positions, `depth` blocks, norm, linear `classifier`: the next byte at each position.

    Called with the longest sequence T and the number C of byte values. 12 width^2 weights a block.
    """

    def __init__(self, length: int, num_classes: int, *, width: int, depth: int, batchnorm: bool = False) -> None:
        super().__init__()
        if batchnorm:
            raise ValueError("the transformer normalises its layers already: leave model.batchnorm off")
        if width % HEAD:
            raise ValueError(f"model.width of a transformer must be a multiple of {HEAD}, not {width}")
        self.embedding = nn.Embedding(num_classes, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, T, C) of bytes (N, T)."""
        at = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.position(at)
        return cast(Tensor, self.classifier(self.norm(self.blocks(x))))
