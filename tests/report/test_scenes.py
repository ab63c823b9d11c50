"""The pictures are orthogonal projections, and say what they cannot show."""

from __future__ import annotations

import builtins
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from nucleate.report.scenes import CORNERS, check_projection, flat, on_simplex, simplex_scores, turned


@pytest.mark.parametrize("size", [2, 3, 4])
def test_corners_are_a_centred_regular_simplex_with_edge_one(size: int) -> None:
    corners = CORNERS[size]
    np.testing.assert_allclose(corners.sum(0), 0, atol=1e-12)
    for a, b in combinations(corners, 2):
        assert np.linalg.norm(a - b) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_softmax_points_are_projected_orthogonally(size: int) -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(7), 5)
    chosen = [5, 1, 3, 0][:size]
    edges = np.eye(7)[chosen[1:]] - np.eye(7)[chosen[0]]
    basis = np.linalg.qr(edges.T)[0]
    exact = (probs - probs[0]) @ basis
    shown = on_simplex(probs, chosen)
    # Distances in the plane of the chosen corners, whose edge is sqrt 2 there and 1 here.
    for i, j in combinations(range(5), 2):
        assert np.linalg.norm(shown[i] - shown[j]) == pytest.approx(np.linalg.norm(exact[i] - exact[j]) / math.sqrt(2))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_features_on_the_etf_are_projected_orthogonally(size: int) -> None:
    rng = np.random.default_rng(1)
    classes, dim = 6, 5
    centred = np.eye(classes) - 1 / classes
    vertices = np.linalg.svd(centred)[0][:, :dim]
    vertices = 2.5 * vertices / np.linalg.norm(vertices[0])
    points = rng.standard_normal((4, dim))
    frame = {"etf_points": points, "etf_means": vertices, "etf_weights": 9 * vertices, "etf_vertices": vertices}
    scores = simplex_scores(frame)
    chosen = [4, 0, 2, 5][:size]
    edge = np.linalg.norm(vertices[0] - vertices[1])
    basis = np.linalg.qr((vertices[chosen[1:]] - vertices[chosen[0]]).T)[0]
    exact, shown = points @ basis / edge, on_simplex(scores["etf"], chosen)
    for i, j in combinations(range(4), 2):
        assert np.linalg.norm(shown[i] - shown[j]) == pytest.approx(np.linalg.norm(exact[i] - exact[j]))
    np.testing.assert_allclose(on_simplex(scores["etf_means"][chosen], chosen), CORNERS[size], atol=1e-12)
    np.testing.assert_allclose(on_simplex(scores["etf_weights"][chosen], chosen), CORNERS[size], atol=1e-12)


def test_a_constant_added_to_the_logits_moves_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 5))
    a, b = (simplex_scores({"logits": z})["logits"] for z in (logits, logits + 100))
    np.testing.assert_allclose(a, b, atol=1e-10)


def test_turning_keeps_distances() -> None:
    points = np.random.default_rng(0).standard_normal((6, 3))
    screen, near = turned(points, azimuth=1.1, elevation=-0.4)
    whole = np.column_stack([screen, near])
    np.testing.assert_allclose(whole @ whole.T, points @ points.T, atol=1e-12)


def test_layers_have_unit_radius_and_do_not_flip() -> None:
    points = np.random.default_rng(0).standard_normal((50, 10)) * [30, 20, *[1] * 8]
    first = flat(points, "pca")
    assert (first**2).sum(1).mean() == pytest.approx(1.0)
    np.testing.assert_allclose(flat(-points, "pca", first), first, atol=1e-12)
    line = flat(points[:, :1], "pca")
    assert line.shape == (50, 2) and np.isfinite(line).all()
    assert np.isfinite(flat(np.ones((5, 3)), "pca")).all(), "a collapsed layer is one point, not nan"


def test_tsne_separates_clusters_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    points = rng.standard_normal((60, 8)) * 0.1 + 5 * labels[:, None]
    out = flat(points, "tsne")
    gap = np.linalg.norm(out[labels == 0].mean(0) - out[labels == 1].mean(0))
    assert gap > 2 * out[labels == 0].std(0).max()
    np.testing.assert_array_equal(out, flat(points, "tsne"))


def test_umap_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "umap":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"nucleate\[umap\]"):
        check_projection("umap")
    with pytest.raises(ValueError, match="pca, tsne or umap"):
        check_projection("mds")
