"""Points as pictures show them: simplex scores, the plane of a few chosen classes, layers in two dimensions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Projection = Literal["pca", "tsne", "umap"]

CORNERS: dict[int, Array] = {
    2: np.array([[-0.5], [0.5]]),
    3: np.array([[-0.5, -math.sqrt(3) / 6], [0.5, -math.sqrt(3) / 6], [0.0, math.sqrt(3) / 3]]),
    4: np.array(
        [
            [-0.5, -math.sqrt(3) / 6, -math.sqrt(6) / 12],
            [0.5, -math.sqrt(3) / 6, -math.sqrt(6) / 12],
            [0.0, math.sqrt(3) / 3, -math.sqrt(6) / 12],
            [0.0, 0.0, math.sqrt(6) / 4],
        ]
    ),
}
"""Corners of the segment, triangle and tetrahedron with edge 1 and centre 0. page.js holds the same numbers."""


def simplex_scores(frame: dict[str, Array]) -> dict[str, Array]:
    """Scores (n, C) whose product with the corners of chosen classes is an orthogonal projection onto their simplex.

    For softmax outputs and logits these are the numbers themselves. For features in ETF coordinates they are
    (C-1)/C <v_c, x> with unit vertices v_c, in units of the nearest ETF's radius, to which the weights are scaled.
    Sources that the frame does not hold are left out.

    >>> eye = np.eye(3, 2)
    >>> sorted(simplex_scores({"probs": eye, "labels": np.zeros(3)}))
    ['probs']
    """
    out: dict[str, Array] = {}
    if "probs" in frame:
        out["probs"] = frame["probs"]
    if "logits" in frame:
        # A constant added to all logits of a point changes nothing; without it the numbers keep more digits.
        out["logits"] = frame["logits"] - frame["logits"].mean(1, keepdims=True)
    if {"etf_points", "etf_means", "etf_weights", "etf_vertices"} <= frame.keys():
        vertices = frame["etf_vertices"].astype(np.float64)
        radius = float(np.linalg.norm(vertices, axis=1).mean())
        classes = len(vertices)
        if radius > 0 and math.isfinite(radius):
            unit = vertices.T / radius * (classes - 1) / classes
            size = float(np.nanmean(np.linalg.norm(frame["etf_weights"], axis=1)))
            out["etf"] = frame["etf_points"] @ unit / radius
            out["etf_means"] = frame["etf_means"] @ unit / radius
            out["etf_weights"] = frame["etf_weights"] @ unit / (size if size > 0 else 1.0)
    return out


def on_simplex(scores: Array, chosen: Sequence[int]) -> Array:
    """Points (n, k-1) on the simplex of the k chosen classes; what belongs to other classes pulls to the centre.

    >>> on_simplex(np.array([[0.0, 1.0, 0.0]]), [0, 1, 2]).round(3)
    array([[ 0.5  , -0.289]])
    """
    return scores[:, list(chosen)] @ CORNERS[len(chosen)]


def turned(points: Array, *, azimuth: float = 0.5, elevation: float = 0.25) -> tuple[Array, Array]:
    """Screen position (n, 2) and nearness (n,) of points in space, seen from angles in radians."""
    x, y, z = points.T
    side = x * math.cos(azimuth) - y * math.sin(azimuth)
    deep = x * math.sin(azimuth) + y * math.cos(azimuth)
    up = z * math.cos(elevation) + deep * math.sin(elevation)
    return np.column_stack([side, up]), z * math.sin(elevation) - deep * math.cos(elevation)


def flat(points: Array, method: Projection, previous: Array | None = None) -> Array:
    """Points (n, 2) of a layer, root mean square radius 1, turned to lie as in the epoch before.

    `points` are leading principal coordinates (n, d): "pca" keeps the first two; "tsne" (scikit-learn) and "umap"
    (extra `umap`) start from all of them.

    Raises:
        ValueError: for an unknown method, or umap without umap-learn.
    """
    out: Array
    if method == "pca":
        out = points[:, :2].astype(np.float64)
    elif method == "tsne":
        out = _tsne(points)
    elif method == "umap":
        out = _umap(points)
    else:
        raise ValueError(f"projection must be pca, tsne or umap, not {method!r}")
    if out.shape[1] < 2:
        out = np.column_stack([out, np.zeros(len(out))])
    out = out - out.mean(0)
    size = math.sqrt(float((out**2).sum(1).mean()))
    out = out / size if size > 0 and math.isfinite(size) else out
    if previous is None or previous.shape != out.shape:
        return out
    if method == "pca":
        # Only signs are free: the axes stay the principal ones.
        out *= np.where((out * previous).sum(0) < 0, -1.0, 1.0)
        return out
    left, _, right = np.linalg.svd(out.T @ previous)
    turned_back: Array = out @ (left @ right)
    return turned_back


def check_projection(method: str) -> None:
    """Refuse a projection that cannot be computed, before any work is done.

    Raises:
        ValueError: for an unknown method, or umap without umap-learn.
    """
    if method not in ("pca", "tsne", "umap"):
        raise ValueError(f"projection must be pca, tsne or umap, not {method!r}")
    if method == "umap":
        _umap_class()


def _distinct(points: Array) -> bool:
    return len(points) > 3 and bool(np.isfinite(points).all()) and float(points.std()) > 0


def _tsne(points: Array) -> Array:
    if not _distinct(points):
        return points[:, :2].astype(np.float64)
    from sklearn.manifold import TSNE

    scaled = points.astype(np.float64) / points.std()
    start = scaled[:, :2] if scaled.shape[1] > 1 else np.column_stack([scaled, np.zeros(len(scaled))])
    model = TSNE(
        init=start * 1e-4 / max(float(start[:, 0].std()), 1e-12),
        perplexity=min(30.0, (len(points) - 1) / 3),
        max_iter=500,
        random_state=0,
        n_jobs=1,
    )
    out: Array = model.fit_transform(scaled).astype(np.float64)
    return out


def _umap(points: Array) -> Array:
    kind = _umap_class()
    if not _distinct(points):
        return points[:, :2].astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(n_neighbors=min(15, len(points) - 1), random_state=0, n_jobs=1)
        out: Array = np.asarray(model.fit_transform(points.astype(np.float64) / points.std()), dtype=np.float64)
    return out


def _umap_class() -> Any:
    try:
        from umap import UMAP
    except ImportError:
        raise ValueError(
            "projection 'umap' needs umap-learn: pip install 'nucleate[umap]', or choose pca or tsne"
        ) from None
    return UMAP
