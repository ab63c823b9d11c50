"""Points on simplices, layers in two dimensions, distances to the boundary, drawn with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nucleate.report.curves import empty
from nucleate.report.gather import View
from nucleate.report.scenes import CORNERS, Array, Projection, flat, on_simplex, simplex_scores, turned
from nucleate.report.style import INK, LINE, SOFT, colour, marker, new_figure, plain

UNITS = {
    "probs": "softmax outputs",
    "logits": "logits; the small simplex has the unit vectors as corners",
    "etf": "features in units of the nearest ETF's radius: points, class means (large), classifier rows (lines)",
}


def simplex_figure(v: View, source: str) -> Figure:
    """Start, zero error and end on the simplices of the first two, three and four classes that the run has."""
    moments = v.moments()
    frames = [v.frame(e) for _, e in moments]
    scores = [simplex_scores(f) for f in frames]
    if not frames or any(source not in s for s in scores):
        return empty(UNITS[source], v.why_not_drawn(source))
    classes = scores[0][source].shape[1]
    sizes = [2] if classes == 2 else [k for k in (3, 4) if k <= classes]
    figure = new_figure(3.1 * len(moments), (1.9 if sizes == [2] else 2.9 * len(sizes)) + 0.7)
    grid = figure.subplots(len(sizes), len(moments), squeeze=False)
    for row, size in zip(grid, sizes, strict=True):
        chosen = list(range(size))
        reach = _reach(source, scores, frames, chosen)
        for axes, (name, epoch), frame, score in zip(row, moments, frames, scores, strict=True):
            labels = frame["labels"].astype(int)
            _simplex(axes, source, score, labels, chosen, reach, [v.class_name(c) for c in chosen])
            axes.set_title(f"{name} (epoch {epoch})")
    shown = range(sizes[-1])
    count = int(np.isin(frames[0]["labels"], list(shown)).sum())
    _class_key(figure, v, shown)
    head = f"{plain(v.label, 50)}: {UNITS[source]}; {count} training points of {len(shown)} classes"
    figure.suptitle(head, x=0.01, ha="left", fontsize=9, color=SOFT, wrap=True)
    return figure


def _reach(source: str, scores: Sequence[dict[str, Array]], frames: Sequence[Any], chosen: Sequence[int]) -> float:
    """Half width of the axes, the same at all epochs."""
    if source == "probs":
        return 0.78
    far = [
        np.linalg.norm(on_simplex(s[source][np.isin(f["labels"], chosen)], chosen), axis=1)
        for s, f in zip(scores, frames, strict=True)
    ]
    every = np.concatenate(far)
    every = every[np.isfinite(every)]
    if not len(every):
        return 0.9
    if source == "etf":
        return float(np.clip(np.quantile(every, 0.97), 0.8, 1.6))
    return max(0.9, 1.15 * float(every.max()))


def _simplex(
    axes: Any, source: str, score: dict[str, Array], labels: Array, chosen: list[int], reach: float, names: list[str]
) -> None:
    size = len(chosen)
    corners = _screen(CORNERS[size], -0.9)
    for i in range(size):
        for j in range(i):
            axes.plot(*corners[[i, j]].T, color=SOFT, lw=0.9, zorder=1)
    axes.plot(*corners.T, "o", mfc="none", mec=INK, ms=3 if reach > 2 else 5, zorder=2)
    for lane, c in enumerate(chosen):
        points = on_simplex(score[source][labels == c], chosen)
        at = _screen(points, lane, spread=0.12)
        axes.scatter(*at.T, s=16, c=colour(c), marker=marker(c), alpha=0.85, lw=0.3, edgecolors="w", zorder=3)
        if source == "etf":
            mean = _screen(on_simplex(score["etf_means"][[c]], chosen), lane)
            row = _screen(on_simplex(score["etf_weights"][[c]], chosen), lane)
            origin = _screen(np.zeros((1, size - 1)), lane)
            axes.plot(*np.concatenate([origin, row]).T, color=INK, lw=1.1, zorder=4)
            axes.scatter(*mean.T, s=70, c=colour(c), marker=marker(c), lw=1.3, edgecolors=INK, zorder=5)
    # On the ETF the class means sit where the names would; the legend tells them apart.
    if reach <= 2 and source != "etf":
        for place, name in zip(corners, names, strict=True):
            out = np.array([0.0, 1.0]) if size == 2 else place / np.linalg.norm(place)
            axes.annotate(
                plain(name, 12), place, 11 * out, textcoords="offset points", ha="center", va="center", fontsize=8
            )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(*((-0.45, 0.3) if size == 2 else (-0.62 * reach, reach)))
    axes.set_aspect("auto" if size == 2 else "equal")
    axes.set_axis_off()


def _screen(points: Array, lane: float, spread: float = 0.0) -> Array:
    """Screen position: a lane for each class on the segment, a turned view in space."""
    if points.shape[1] == 1:
        golden = (np.arange(len(points)) * 0.618033988749895) % 1 - 0.5
        return np.column_stack([points[:, 0], spread * golden - 0.2 * lane])
    return turned(points)[0] if points.shape[1] == 3 else points


def layers_figure(v: View, projection: Projection) -> Figure:
    """Rows: start, zero error, end. Columns: up to six layers, always the first and the last."""
    moments = v.moments()
    frames = [v.frame(e) for _, e in moments]
    have = [n for n in v.layers if any(f"pca:{n}" in f for f in frames)]
    if not have:
        return empty("Every layer in two dimensions", "the run stored no coordinates of its layers (tensors pca:LAYER)")
    names = [have[i] for i in sorted(set(np.linspace(0, len(have) - 1, min(6, len(have))).round().astype(int)))]
    figure = new_figure(1.95 * len(names) + 0.4, 2.05 * len(moments) + 0.8)
    grid = figure.subplots(len(moments), len(names), squeeze=False)
    classes = sorted({int(c) for c in frames[0]["labels"]})
    far = [abs(flat(f[f"pca:{n}"], "pca")).max() for f in frames for n in names if f"pca:{n}" in f]
    # t-SNE and UMAP fill their square evenly; principal components of few clusters reach further out.
    reach = min(2.6, 1.08 * max(far)) if projection == "pca" else 2.6
    for j, name in enumerate(names):
        previous = None
        for i, ((when, epoch), frame) in enumerate(zip(moments, frames, strict=True)):
            axes = grid[i, j]
            if f"pca:{name}" in frame:
                previous = flat(frame[f"pca:{name}"], projection, previous)
                for c in classes:
                    at = previous[frame["labels"] == c]
                    axes.scatter(*at.T, s=9, c=colour(c), marker=marker(c), alpha=0.85, lw=0.2, edgecolors="w")
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_visible(True)
            axes.spines[:].set_color(LINE)
            if i == 0:
                axes.set_title(plain(name, 18), fontsize=9.5)
            if j == 0:
                axes.set_ylabel(f"{when}\n(epoch {epoch})")
    _class_key(figure, v, classes[:32])
    kind = {"pca": "two principal components", "tsne": "t-SNE", "umap": "UMAP"}[projection]
    head = f"{plain(v.label, 50)}: {len(frames[0]['labels'])} training points, {kind}, unit root mean square radius"
    figure.suptitle(head, x=0.01, ha="left", fontsize=9, color=SOFT)
    return figure


def boundary_figure(v: View) -> Figure:
    """Signed distance of each point to its class's own hyperplane at start, zero error and end."""
    moments = [(n, e) for n, e in v.moments() if "boundary" in v.frame(e)]
    if not moments:
        return empty("Distance to the own decision boundary", "the run stored no tensor boundary")
    figure = new_figure(3.3 * len(moments), 3.3)
    for axes, (name, epoch) in zip(figure.subplots(1, len(moments), squeeze=False)[0], moments, strict=True):
        frame = v.frame(epoch)
        labels = frame["labels"].astype(int)
        for c in sorted(set(labels.tolist())):
            values = frame["boundary"][labels == c]
            golden = (np.arange(len(values)) * 0.618033988749895) % 1 - 0.5
            axes.scatter(c + 0.55 * golden, values, s=9, c=colour(c), marker=marker(c), alpha=0.8, lw=0)
        axes.axhline(0, color=INK, lw=1)
        axes.set_title(f"{name} (epoch {epoch})")
        classes = sorted(set(labels.tolist()))
        step = math.ceil(len(classes) / 16)
        ticks = classes[::step]
        names = [plain(v.class_name(c), 10) for c in ticks]
        if max(map(len, names)) > 2:
            axes.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(ticks, names)
        axes.set_xlabel("class")
        axes.grid(axis="x", visible=False)
    figure.axes[0].set_ylabel("signed distance to the boundary\n(units of the features)")
    head = f"{plain(v.label, 50)}: {len(labels)} training points; below 0 a point lies on the wrong side"
    figure.suptitle(head, x=0.01, ha="left", fontsize=9, color=SOFT)
    return figure


def _class_key(figure: Figure, v: View, classes: Sequence[int]) -> None:
    handles = [
        Line2D([], [], ls="", marker=marker(c), color=colour(c), ms=6, label=plain(v.class_name(c), 16))
        for c in classes
    ]
    columns = 5 if figure.get_figwidth() < 10 else 8
    rows = math.ceil(len(handles) / columns)
    figure.legend(handles=handles, loc="outside lower left", ncols=math.ceil(len(handles) / rows), handlelength=1.2)
