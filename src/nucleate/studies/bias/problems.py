"""Problems in closed form: minimum norm, maximum margin, low rank. Each yields (arm, step, metric, value)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Generator, Tensor
from torch.nn import functional as F

from nucleate.data.sources import generator
from nucleate.kernels.features import draw_features
from nucleate.kernels.least_squares import LeastSquares
from nucleate.spec import BiasSpec

Measured = tuple[str, int, str, float]

POINTS = 60
INPUTS = 40
FEATURES = 300
"""Least squares: Gaussian points, random ReLU features of them."""

MARGIN_POINTS = 40
MARGIN_INPUTS = 10
GAP = 0.3
"""Separable points: none lies nearer than this to the hyperplane that labels them."""

RANK = 2
SIZE = 12
OBSERVED = 0.5
"""Matrix completion: a SIZE x SIZE matrix of this rank, of which this share of the entries is seen."""


def log_steps(steps: int, points: int) -> list[int]:
    """Log-spaced steps up to the last.

    >>> log_steps(1000, 4)
    [1, 10, 100, 1000]
    """
    return sorted({round(steps ** (i / max(1, points - 1))) for i in range(points)})


def min_norm(spec: BiasSpec, seed: int) -> Iterator[Measured]:
    """Gradient descent on more features than points, from zero and from a random start, and Adam from zero.

    Descent moves in the span of the points, so from w_0 it ends at w_0 + F^+ (y - F w_0): the minimum-norm interpolator
    only from zero. Adam leaves the span. `distance`: |w - F^+ y| / |F^+ y|.
    """
    draw = generator(seed, "minimum norm")
    x = torch.randn(POINTS, INPUTS, generator=draw, dtype=torch.float64)
    f = draw_features(x, FEATURES, generator=draw)(x, FEATURES)
    y = torch.randn(POINTS, 1, generator=draw, dtype=torch.float64)
    wanted = LeastSquares(f, y).coefficients()
    start = torch.randn(FEATURES, 1, generator=draw, dtype=torch.float64) * float(wanted.norm()) / math.sqrt(FEATURES)
    # The best constant rate: the mean direction of ReLU features is far steeper than all others.
    values = torch.linalg.eigvalsh(f @ f.T)
    rate = 2 / float(values[0] + values[-1])
    for arm, first in (("from zero", torch.zeros_like(start)), ("from a random start", start)):
        w = first.clone()
        yield from _told(arm, 0, w, f, y, wanted)
        steps = set(log_steps(spec.steps, spec.points))
        for step in range(1, spec.steps + 1):
            w -= rate * f.T @ (f @ w - y)
            if step in steps:
                yield from _told(arm, step, w, f, y, wanted)
    w = torch.zeros_like(start)
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, spec.steps + 1):
        gradient = f.T @ (f @ w - y)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        size = 0.015 * (1 + math.cos(math.pi * step / spec.steps))
        w -= size * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        if step in steps:
            yield from _told("Adam from zero", step, w, f, y, wanted)


def _told(arm: str, step: int, w: Tensor, f: Tensor, y: Tensor, wanted: Tensor) -> Iterator[Measured]:
    yield arm, step, "distance", float((w - wanted).norm() / wanted.norm())
    yield arm, step, "loss", float((f @ w - y).square().mean())


def max_margin(spec: BiasSpec, seed: int) -> Iterator[Measured]:
    """Logistic regression on separable points: the direction of w turns to the maximum-margin separator's.

    Plain descent turns like 1 / log t (Soudry et al. 2018); steps divided by the loss turn like a power of t (Nacson et
    al. 2019). `cosine`: with the hard-margin solution; `margin`: smallest margin over the largest possible.
    """
    draw = generator(seed, "maximum margin")
    truth = torch.randn(MARGIN_INPUTS, generator=draw, dtype=torch.float64)
    truth /= truth.norm()
    z = _separable(truth, draw)
    wanted = hard_margin(z)
    best = float((z @ wanted).min())
    rate = 1.0 / float(torch.linalg.matrix_norm(z, 2) ** 2 / (4 * len(z)))
    steps = set(log_steps(spec.steps, spec.points))
    for arm in ("plain", "normalised"):
        w = torch.zeros(MARGIN_INPUTS, dtype=torch.float64)
        for step in range(1, spec.steps + 1):
            margins = z @ w
            pull, log_loss = torch.sigmoid(-margins), _log_loss(margins)
            if arm == "normalised":
                # Divided by the loss in logarithms: both underflow long before their ratio settles.
                pull = (F.logsigmoid(-margins) - log_loss).exp()
            w += rate * (pull[:, None] * z).mean(0)
            if step in steps:
                direction = w / w.norm()
                yield arm, step, "cosine", float(direction @ wanted)
                yield arm, step, "margin", float((z @ direction).min()) / best
                yield arm, step, "log_loss", log_loss


def _log_loss(margins: Tensor) -> float:
    """Logarithm of the mean of log(1 + exp(-margin)), which is exp(-margin) where that is tiny."""
    each = torch.where(margins > 30, -margins, F.softplus(-margins).clamp_min(1e-300).log())
    return float(each.logsumexp(0)) - math.log(len(margins))


def _separable(truth: Tensor, draw: Generator) -> Tensor:
    """Points times their labels: all on one side of a hyperplane through the origin."""
    x = torch.randn(MARGIN_POINTS, len(truth), generator=draw, dtype=torch.float64)
    side = x @ truth
    return x * side.sign()[:, None] + GAP * truth


def hard_margin(z: Tensor) -> Tensor:
    """Unit direction w that maximises min_i w . z_i, by non-negative least squares (Lawson, Hanson 1974, ch. 23).

    Raises:
        ValueError: if no direction separates the points z (n, d), labels multiplied in.

    >>> w = hard_margin(torch.tensor([[2.0, 1.0], [2.0, -1.0], [5.0, 0.0]]).double())
    >>> [round(float(v), 6) for v in w.abs()]
    [1.0, 0.0]
    """
    a = np.vstack([z.numpy().T, np.ones(len(z))])
    target = np.zeros(len(a))
    target[-1] = 1.0
    solution, _ = nnls(a, target)
    residual = a @ solution - target
    if not -residual[-1] > 1e-10:
        raise ValueError("the points are not separable by a hyperplane through the origin")
    w = torch.from_numpy(-residual[:-1] / residual[-1])
    w = w if float((z @ w).min()) > 0 else -w
    unit: Tensor = w / w.norm()
    return unit


def depth(spec: BiasSpec, seed: int) -> Iterator[Measured]:
    """Complete a matrix of low rank by descent on a product of square factors from a small start (Arora et al. 2019).

    One factor leaves the unseen entries where they were; with more factors descent prefers low rank, the more the
    deeper. `unseen_error`: root mean square over unseen entries, as a share of theirs; `effective_rank`: exp of the
    entropy of the singular values' shares.
    """
    draw = generator(seed, "matrix")
    a, b = (torch.randn(SIZE, RANK, generator=draw, dtype=torch.float64) for _ in range(2))
    truth = a @ b.T
    truth /= torch.linalg.matrix_norm(truth, 2)
    seen = torch.rand(SIZE, SIZE, generator=draw) < OBSERVED
    steps = set(log_steps(spec.steps, spec.points))
    for count in spec.depths:
        # Factors whose product starts at the same small size at every depth.
        size = 1e-3 ** (1 / count)
        factors = [
            size * torch.linalg.qr(torch.randn(SIZE, SIZE, generator=draw, dtype=torch.float64))[0]
            for _ in range(count)
        ]
        rate = 0.3 / count
        for step in range(1, spec.steps + 1):
            product = _product(factors)
            r = torch.where(seen, product - truth, 0.0)
            before = [_product(factors[:i]) for i in range(count)]
            after = [_product(factors[i + 1 :]) for i in range(count)]
            factors = [w - rate * left.T @ r @ right.T for w, left, right in zip(factors, before, after, strict=True)]
            if step in steps:
                product = _product(factors)
                share = torch.linalg.svdvals(product)
                share = share / share.sum()
                arm = f"{count} factor{'s' * (count > 1)}"
                entropy = float(-(share * share.clamp_min(1e-300).log()).sum())
                yield arm, step, "effective_rank", math.exp(entropy)
                unseen = (product - truth)[~seen].norm() / truth[~seen].norm()
                yield arm, step, "unseen_error", float(unseen)
                yield arm, step, "loss", float(((product - truth)[seen]).square().mean())


def _product(factors: list[Tensor]) -> Tensor:
    out = torch.eye(SIZE, dtype=torch.float64)
    for w in factors:
        out = out @ w
    return out
