"""Curves over epochs and over layers, heat maps and histograms, drawn with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nucleate.report.catalog import LABELS, PANELS, Panel
from nucleate.report.gather import BAND_SEEDS, View, band, groups, seeds_told
from nucleate.report.payload import densities
from nucleate.report.style import DASHES, INK, SOFT, Epochs, Values, colour, distinct, new_figure, plain

PANEL_MARKERS = ("o", "s", "D", "^")


def panels_figure(found: Sequence[View], section: str) -> Figure:
    """All panels of a section, two in a row; seeds of one spec as mean and 95 % interval."""
    own = [p for p in PANELS if p.section == section]
    columns = min(2, len(own))
    rows = math.ceil(len(own) / columns)
    figure = new_figure(4.6 * columns, 3.0 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, own, strict=False):
        draw_panel(axes, found, panel)
    for axes in grid[len(own) :]:
        axes.set_visible(False)
    group_key(figure, found)
    return figure


def group_key(figure: Figure, found: Sequence[View]) -> None:
    """One legend of a figure: which colour is which experiment, and how many seeds it has."""
    grouped = groups(found)
    many = len(grouped) > 1
    handles = []
    for g, (label, members) in enumerate(grouped.items()):
        tone = colour(g) if many else SOFT
        handles.append(Line2D([], [], color=tone, lw=2.5, label=f"{plain(label, 60)}: {seeds_told([len(members)])}"))
    figure.legend(handles=handles, loc="outside lower left", ncols=1 if len(handles) > 2 else 2)


def draw_panel(axes: Any, found: Sequence[View], panel: Panel) -> None:
    """Measures of a panel over epochs, with a line at zero training error."""
    grouped = groups(found)
    many = len(grouped) > 1
    lines = [line for line in panel.lines if line.main or not many]
    drawn = []
    for i, line in enumerate(lines):
        for g, members in enumerate(grouped.values()):
            curve = band(members, (line.metric, panel.layer, line.split), log=panel.log)
            if curve is not None:
                drawn.append((i, g, line, curve))
    axes.set_title(panel.title, pad=13)
    if not drawn:
        key = (panel.lines[0].metric, panel.layer, panel.lines[0].split)
        missing(axes, found[0].why(key))
        return
    x = Epochs(e for *_, c in drawn for e in c.epochs)
    y = Values((v for *_, c in drawn for v in c.mean), panel.log)
    for i, g, line, curve in drawn:
        tone = colour(g if many else i)
        at = x.at(curve.epochs)
        axes.plot(at, y.at(curve.mean), color=tone, ls=DASHES[i], marker=PANEL_MARKERS[i % 4], label=line.label)
        if curve.seeds >= BAND_SEEDS:
            # Below a log axis there is no place for a bound at or under zero; the axis cuts the band there.
            low = [max(v, 1e-300) if y.log else v for v in y.at(curve.low)]
            axes.fill_between(at, low, y.at(curve.high), color=tone, alpha=0.18 if line.main else 0.06, lw=0)
    for g, members in enumerate(grouped.values()):
        zeros = sorted(v.zero for v in members if v.zero is not None)
        if zeros:
            tone = colour(g) if many else SOFT
            axes.axvline(x.at([zeros[len(zeros) // 2]])[0], color=tone, ls=":", lw=1.2)
            if zeros[-1] > zeros[0]:
                axes.axvspan(*x.at([zeros[0], zeros[-1]]), color=tone, alpha=0.1, lw=0)
            if g == 0:
                place = (x.at([zeros[len(zeros) // 2]])[0], 1.0)
                axes.annotate(
                    "zero error", place, (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                    ha="center", fontsize=7.5, color=SOFT,
                )  # fmt: skip
    axes.set_ylabel(panel.unit)
    x.apply(axes)
    y.apply(axes)
    if len(lines) > 1:
        neutral = [
            Line2D(
                [], [], color=SOFT if many else colour(i), ls=DASHES[i], marker=PANEL_MARKERS[i % 4], label=line.label
            )
            for i, line in enumerate(lines)
            if any(d[0] == i for d in drawn)
        ]
        axes.legend(handles=neutral, loc="best")


def depth_figure(v: View, measures: Sequence[str]) -> Figure:
    """A measure as layers x epochs and as curves by layer, one row for each measure that the run has."""
    have = [m for m in measures if split_of(v, m)]
    figure = new_figure(9.6, 3.5 * max(1, len(have)) + 0.3)
    if not have:
        axes = figure.subplots()
        axes.set_title(LABELS[measures[0]])
        missing(axes, v.why((measures[0], v.layers[-1] if v.layers else "", "test")))
        return figure
    for row, measure in zip(figure.subplots(len(have), 2, squeeze=False), have, strict=True):
        split = split_of(v, measure)
        layers = [name for name in v.layers if (measure, name, split) in v.series]
        _heat(figure, row[0], v, measure, split, layers)
        _by_layer(row[1], v, measure, split, layers)
    figure.suptitle(f"{plain(v.label, 70)}", x=0.01, ha="left", fontsize=9, color=SOFT)
    return figure


def split_of(v: View, measure: str) -> str:
    """Held-out points where two layers have them, else training points, else nothing."""
    for split in ("test", "train"):
        if sum((measure, name, split) in v.series for name in v.layers) > 1:
            return split
    return ""


def _heat(figure: Figure, axes: Any, v: View, measure: str, split: str, layers: Sequence[str]) -> None:
    epochs = sorted({e for name in layers for e in v.series[measure, name, split].epochs})
    table = np.array([[v.series[measure, name, split].at(e) for e in epochs] for name in layers])
    share = bool(np.nanmin(table) >= 0 and np.nanmax(table) <= 1)
    low = float(np.nanmin(table))
    chance = [c for name in layers for c in v.series[measure, name, split].chance if math.isfinite(c)]
    low, high = (min([low, *chance]), 1.0) if share else (low, float(np.nanmax(table)))
    image = axes.imshow(table, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
    axes.grid(False)
    points = "held-out points" if split == "test" else "training points"
    axes.set_title(f"{LABELS[measure]}\n({points})", pad=14)
    axes.set_yticks(range(len(layers)), distinct(layers, 18))
    step = math.ceil(len(epochs) / 12)
    axes.set_xticks(range(0, len(epochs), step), [str(e) for e in epochs[::step]])
    axes.set_xlabel("epoch")
    if v.zero in epochs:
        axes.axvline(epochs.index(v.zero), ymin=1.0, ymax=1.04, clip_on=False, color=INK, lw=1.5)
        axes.annotate(
            "zero error", (epochs.index(v.zero), 1.0), (4, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7.5, color=SOFT,
        )  # fmt: skip
    if table.size <= 130 and len(epochs) <= 11:
        for (i, j), value in np.ndenumerate(table):
            if math.isfinite(value):
                light = (value - low) / ((high - low) or 1) > 0.5
                axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=7, color="#101418" if light else "w")
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).outline.set_visible(False)


def _by_layer(axes: Any, v: View, measure: str, split: str, layers: Sequence[str]) -> None:
    series = [v.series[measure, name, split] for name in layers]
    epochs = {e for s in series for e in s.epochs}
    named = [(name, e) for name, e in v.moments() if e in epochs] or [("last", max(epochs))]
    places = range(len(layers))
    for i, (name, epoch) in enumerate(named):
        tone = colour((2, 1, 0)[i % 3])
        values = [s.at(epoch) for s in series]
        style = {"color": tone, "ls": DASHES[(len(named) - 1 - i) % 3], "marker": PANEL_MARKERS[i % 4]}
        axes.plot(places, values, label=f"{name} (epoch {epoch})", **style)
        bounds = [[_bound(s, f, epoch) for s in series] for f in ("low", "high")]
        if np.isfinite(bounds).all():
            axes.fill_between(places, *bounds, color=tone, alpha=0.18, lw=0)
    chance = [_bound(s, "chance", named[-1][1]) for s in series]
    if any(map(math.isfinite, chance)):
        axes.plot(places, chance, color=SOFT, ls=":", lw=1.4, label="chance")
    finite = [x for s in series for x in s.values if math.isfinite(x)]
    if min(finite) >= 0 and max(finite) <= 1:
        axes.set_ylim(0, 1.04)
    long = sum(len(plain(n, 16)) for n in layers) > 46
    axes.set_xticks(places, distinct(layers, 16), rotation=35 if long else 0, ha="right" if long else "center")
    axes.set_xlabel("" if long else "layer")
    axes.set_ylabel(LABELS[measure].split(",")[0])
    axes.legend(loc="best")


def _bound(series: Any, name: str, epoch: int) -> float:
    values: list[float] = getattr(series, name)
    return values[series.epochs.index(epoch)] if epoch in series.epochs else math.nan


def weights_figure(v: View) -> Figure:
    """Histograms of the parameters at the start, at zero error and at the end (the first six parameters)."""
    histograms = densities(v, [v.frame(e) for e in v.frames])
    names = list(histograms)[:6]
    if not names:
        return empty("Weight histograms", "the run stored no weight histograms (tensors hist:PARAMETER)")
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(4.6 * columns, 2.8 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, names, strict=False):
        for i, h in enumerate(histograms[name]):
            density = np.where(h["density"] > 0, h["density"], np.nan)
            style = {"color": colour((2, 1, 0)[i % 3]), "ls": DASHES[(len(histograms[name]) - 1 - i) % 3]}
            axes.stairs(density, h["edges"], baseline=None, lw=1.5, label=f"{h['when']} (epoch {h['epoch']})", **style)
        axes.set_yscale("log")
        axes.set_title(f"{plain(name, 40)}, n = {histograms[name][0]['n']:,}")
        axes.set_xlabel("weight")
        axes.set_ylabel("density")
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    figure.suptitle(plain(v.label, 70), x=0.01, ha="left", fontsize=9, color=SOFT)
    return figure


def missing(axes: Any, reason: str) -> None:
    """Say why there is nothing to see."""
    axes.text(0.5, 0.5, f"not shown: {plain(reason, 140)}", ha="center", va="center", color=SOFT, wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])


def empty(title: str, reason: str) -> Figure:
    """A figure that says why it is empty."""
    figure = new_figure(6, 2)
    axes = figure.subplots()
    axes.set_title(title)
    missing(axes, reason)
    return figure
