"""Slow float64 twins of the scores: a two-layer network differentiated by hand, and loops, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def forward(w1: Array, w2: Array, x: Array) -> tuple[Array, Array]:
    """Hidden values tanh(x w1^T) and logits."""
    h = np.tanh(x @ w1.T)
    return h, h @ w2.T


def softmax(z: Array) -> Array:
    """Rows of probabilities."""
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def loss(w1: Array, w2: Array, x: Array, y: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean cross-entropy."""
    p = softmax(forward(w1, w2, x)[1] / temperature)
    return float(-np.log(p[np.arange(len(y)), y]).mean())


def gradient(w1: Array, w2: Array, x: Array, y: NDArray[np.int64], temperature: float = 1.0) -> tuple[Array, Array]:
    """Gradient of the mean cross-entropy by the chain rule."""
    h, z = forward(w1, w2, x)
    d = softmax(z / temperature)
    d[np.arange(len(y)), y] -= 1
    d /= len(y) * temperature
    back = (d @ w2) * (1 - h**2)
    return back.T @ x, d.T @ h


def hessian_product(
    w1: Array, w2: Array, x: Array, y: NDArray[np.int64], v: tuple[Array, Array], temperature: float = 1.0
) -> tuple[Array, Array]:
    """H v by central differences of the gradient along v."""
    size = np.sqrt(sum((part**2).sum() for part in v))
    e = 1e-5 / size
    up = gradient(w1 + e * v[0], w2 + e * v[1], x, y, temperature)
    down = gradient(w1 - e * v[0], w2 - e * v[1], x, y, temperature)
    return (up[0] - down[0]) / (2 * e), (up[1] - down[1]) / (2 * e)


def hessian_diagonal(w1: Array, w2: Array, x: Array, y: NDArray[np.int64]) -> tuple[Array, Array]:
    """Diagonal of the Hessian, one unit vector at a time."""
    out = np.zeros_like(w1), np.zeros_like(w2)
    for part, w in enumerate((w1, w2)):
        for index in np.ndindex(w.shape):
            v = np.zeros_like(w1), np.zeros_like(w2)
            v[part][index] = 1.0
            out[part][index] = hessian_product(w1, w2, x, y, v)[part][index]
    return out


def both(function: Callable[[Array, Array], Array], a: tuple[Array, Array], b: tuple[Array, Array]) -> list[Array]:
    """A function of two arrays, layer by layer."""
    return [function(p, q) for p, q in zip(a, b, strict=True)]


def lamp(w: Array) -> Array:
    """w_u^2 / sum of w_v^2 over |w_v| >= |w_u|, entry by entry."""
    square = w.flatten() ** 2
    return np.array([s / square[square >= s].sum() for s in square]).reshape(w.shape)


def fpgm(rows: Array) -> Array:
    """Sum of distances from a row to all others."""
    return np.array([sum(np.sqrt(((a - b) ** 2).sum()) for b in rows) for a in rows])


def conv_energy(x: Array, weight: tuple[int, int, int, int], stride: int, padding: int, groups: int) -> Array:
    """Sum over images and positions of the squared input that meets each weight of a 2-d convolution."""
    n, c, height, width = x.shape
    outputs, inputs, kh, kw = weight
    padded = np.zeros((n, c, height + 2 * padding, width + 2 * padding))
    padded[:, :, padding : padding + height, padding : padding + width] = x
    out = np.zeros(weight)
    for o in range(outputs):
        for i in range(inputs):
            channel = (o // (outputs // groups)) * inputs + i
            for a in range(kh):
                for b in range(kw):
                    for r in range((height + 2 * padding - kh) // stride + 1):
                        for s in range((width + 2 * padding - kw) // stride + 1):
                            out[o, i, a, b] += (padded[:, channel, r * stride + a, s * stride + b] ** 2).sum()
    return out
