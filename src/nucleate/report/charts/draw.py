"""Charts as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from nucleate.report.charts.chart import Chart, Curve, Section, grid, labels, marks, section_curves
from nucleate.report.curves import missing
from nucleate.report.gather import View, seeds_told
from nucleate.report.style import DASHES, SOFT, Values, colour, marker, new_figure, plain


def section_figure(found: Sequence[View], section: Section) -> Figure:
    """All charts of a section, two in a row."""
    charts = section_curves(found, section)
    columns = min(2, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure = new_figure(5.2 * columns, 3.4 * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    names = labels(charts)
    for ax, (chart, drawn) in zip(axes, charts, strict=False):
        if chart.y:
            _heat(figure, ax, found, section.study, chart)
        else:
            _curves(ax, chart, drawn, marks(found, section.study, chart), names)
    for ax in axes[len(charts) :]:
        ax.set_visible(False)
    keys: dict[str, tuple[Any, str]] = {}
    for ax in axes:
        for line, text in zip(*ax.get_legend_handles_labels(), strict=True):
            # What seeds tell together has no n of its own.
            keys.setdefault(text.rpartition(" (n = ")[0], (line, text))
    if keys:
        lines, texts = zip(*keys.values(), strict=True)
        title = seeds_told(n for _, drawn in charts for curve in drawn for n in curve.seeds)
        figure.legend(
            lines, texts, loc="outside lower left", ncols=min(4, len(keys)), fontsize=8, title=title, title_fontsize=7,
            alignment="left",
        )  # fmt: skip
    return figure


def ticks(xs: Sequence[float]) -> list[float]:
    """Of sorted values above 0 those that have room on a logarithmic axis, first and last kept.

    >>> ticks([1, 2, 4]), ticks([20, 50, 490, 500, 510, 5000])
    ([1, 2, 4], [20, 50, 490, 5000])
    """
    room = math.log(xs[-1] / xs[0]) / 8
    shown = [xs[0]]
    for x in xs[1:-1]:
        if math.log(x / shown[-1]) >= room and math.log(xs[-1] / x) >= room:
            shown.append(x)
    return list(dict.fromkeys([*shown, xs[-1]]))


def _curves(axes: Any, chart: Chart, drawn: Sequence[Curve], marked: Sequence[float], labelled: Sequence[str]) -> None:
    axes.set_title(chart.title)
    if not drawn:
        missing(axes, f"no run holds {chart.metric} along {chart.x}")
        return
    y = Values((v for c in drawn for v in c.mean), chart.log_y)
    names = list(dict.fromkeys(x for c in drawn for x in c.x))
    # A single number is a name: an axis around it would invent a range.
    numeric = all(isinstance(x, int | float) for x in names) and len(names) > 1
    for curve in drawn:
        i = labelled.index(curve.label)
        at = curve.x if numeric else [names.index(x) for x in curve.x]
        n = sorted(set(curve.seeds))
        seeds = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
        label = f"{plain(curve.label, 40)} ({seeds})"
        style = {"color": colour(i), "marker": marker(i), "ls": DASHES[(i // 7) % len(DASHES)]}
        axes.plot(at, y.at(curve.mean), label=label, **style)
        if np.isfinite(curve.low).any():
            low = [max(v, 1e-300) if y.log else v for v in y.at(curve.low)]
            axes.fill_between(at, low, y.at(curve.high), color=colour(i), alpha=0.15, lw=0)
    for place in marked if numeric else ():
        axes.axvline(place, color=SOFT, ls=":", lw=1.2)
    _x_axis(axes, chart, names, numeric)
    axes.set_ylabel(chart.y_label)
    y.apply(axes)


def _x_axis(axes: Any, chart: Chart, names: Sequence[Any], numeric: bool) -> None:
    axes.set_xlabel(chart.x_label)
    if not numeric:
        axes.set_xticks(range(len(names)), [plain(n, 18) for n in names], rotation=30, ha="right")
        return
    if chart.log_x and min(names) > 0:
        axes.set_xscale("log")
        shown = ticks(sorted(names))
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{x:.4g}" for x in shown], rotation=30 if len(shown) > 5 else 0)
    if chart.reverse_x:
        axes.invert_xaxis()


def _heat(figure: Figure, axes: Any, found: Sequence[View], study: str, chart: Chart) -> None:
    xs, ys, values = grid(found, study, chart)
    axes.set_title(chart.title)
    if not xs:
        missing(axes, f"no run holds {chart.metric} along {chart.x} and {chart.y}")
        return
    image = axes.imshow(np.array(values), cmap="cividis", origin="lower", aspect="auto")
    axes.grid(False)
    for at, names in ((axes.set_xticks, xs), (axes.set_yticks, ys)):
        step = math.ceil(len(names) / 8)
        at(range(0, len(names), step), [f"{n:.4g}" if isinstance(n, float) else str(n) for n in names[::step]])
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).outline.set_visible(False)
