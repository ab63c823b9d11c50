"""Slow float64 twins: the definitions, written out with dense matrices and loops, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def collapse(
    features: Array, labels: NDArray[np.int64], weight: Array, bias: Array, *, mu_g: str = "class"
) -> dict[str, float]:
    """Every measure of balanced or unbalanced classes 0..C-1, each with points, by its textbook definition."""
    h = features.astype(np.float64)
    n, d = h.shape
    c = int(labels.max()) + 1
    counts = np.bincount(labels, minlength=c)
    m = np.stack([h[labels == k].mean(0) for k in range(c)])
    g = m.mean(0) if mu_g == "class" else h.mean(0)
    mc = m - g
    r = h - m[labels]
    s_w = r.T @ r / n
    s_b = mc.T @ mc / c
    v = np.array([(r[labels == k] ** 2).sum(1).mean() for k in range(c)])
    rank = min(d, c - 1)
    _u, s, vt = np.linalg.svd(mc, full_matrices=False)
    s_b_plus = (vt[:rank].T / s[:rank] ** 2) @ vt[:rank] * c
    w = weight - weight.mean(0)
    b = bias - bias.mean()
    e = (np.eye(c) - 1 / c) / np.sqrt(c - 1)
    logits = h @ weight.T + bias
    distances = ((h[:, None] - m[None]) ** 2).sum(2)
    nearest = distances.argmin(1)
    signed = ((h * w[labels]).sum(1) + b[labels]) / np.linalg.norm(w, axis=1)[labels]
    total = h - h.mean(0)
    s_t = total.T @ total / n
    sample_b = (counts[:, None] * (m - h.mean(0))).T @ (m - h.mean(0)) / n
    pairs = [(v[i] + v[j]) / (2 * ((m[i] - m[j]) ** 2).sum()) for i in range(c) for j in range(i)]
    out = {
        "nc1": np.trace(s_w @ s_b_plus) / c,
        "nc1_quotient": np.trace(s_w) / np.trace(s_b),
        "nc1_cdnv": np.mean(pairs),
        "nc1_within": np.trace(s_w),
        "nc1_between": np.trace(s_b),
        "nc3": ((w / np.linalg.norm(w) - mc / np.linalg.norm(mc)) ** 2).sum(),
        "nc3_gram": np.linalg.norm(w @ mc.T / np.linalg.norm(w @ mc.T) - e),
        "nc3_cosine": 1 - np.mean([_cos(w[k], mc[k]) for k in range(c)]),
        "nc3_unc": np.var([_cos(w[k], mc[k]) for k in range(c)]),
        "bias_collapse": np.linalg.norm(w @ g + b),
        "nc4": (logits.argmax(1) != nearest).mean(),
        "ncc_accuracy": (nearest == labels).mean(),
        "boundary_mean": np.mean([signed[labels == k].mean() for k in range(c)]),
        "boundary_spread": np.mean([signed[labels == k].std() / abs(signed[labels == k].mean()) for k in range(c)]),
    }
    if n - 1 > d:
        out["nc1_vci"] = 1 - np.trace(np.linalg.pinv(s_t) @ sample_b) / min(d, c - 1)
    for suffix, a in (("", mc), ("_weights", w)):
        norms = np.linalg.norm(a, axis=1)
        cos = np.array([_cos(a[i], a[j]) for i in range(c) for j in range(c) if i != j])
        gram = a @ a.T
        out[f"nc2_equinorm{suffix}"] = norms.std() / norms.mean()
        out[f"nc2_equiangle{suffix}"] = cos.std()
        out[f"nc2_max_angle{suffix}"] = np.abs(cos + 1 / (c - 1)).mean()
        out[f"nc2_etf{suffix}"] = np.linalg.norm(gram / np.linalg.norm(gram) - e)
    return {k: float(x) for k, x in out.items()}


def nc1(features: Array, labels: NDArray[np.int64], *, block: int = 256) -> float:
    """Trace NC1 of wide features without a d x d matrix: mean |Mc^{+T} r|^2, as S_B^+ = C Mc^+ Mc^{+T}."""
    c = int(labels.max()) + 1
    m = np.stack([features[labels == k].astype(np.float64).mean(0) for k in range(c)])
    mc = m - m.mean(0)
    _u, s, vt = np.linalg.svd(mc, full_matrices=False)
    rank = min(features.shape[1], c - 1)
    inverse = vt[:rank].T / s[:rank]
    total = 0.0
    for i in range(0, len(labels), block):
        r = features[i : i + block].astype(np.float64) - m[labels[i : i + block]]
        total += float(((r @ inverse) ** 2).sum())
    return total / len(labels)


def _cos(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
