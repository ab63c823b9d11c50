"""The report's figures as files, for papers and slides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nucleate.report.charts import along_epochs, charted_sections
from nucleate.report.charts.draw import section_figure
from nucleate.report.curves import depth_figure, panels_figure, weights_figure
from nucleate.report.gather import View, groups, views
from nucleate.report.pictures import boundary_figure, layers_figure, simplex_figure
from nucleate.report.scenes import Projection, check_projection
from nucleate.report.style import INK, SOFT, check_formats, new_figure, plain, save, styled
from nucleate.runs import Run

SHARED = {
    "simplex": "vertex-distance",
    "nc": "nc",
    "logits": "logit-curves",
    "boundary": "boundary-spread",
    "weights": "weight-curves",
    "accuracy": "accuracy",
    "cells": "cells",
}
"""Section of panels -> name of its file."""

PICTURES: dict[str, Callable[[View], Figure]] = {
    "simplex": partial(simplex_figure, source="probs"),
    "etf": partial(simplex_figure, source="etf"),
    "logits": partial(simplex_figure, source="logits"),
    "layers": partial(layers_figure, projection="pca"),
    "boundary": boundary_figure,
    "chi": partial(depth_figure, measures=["chi"]),
    "depth": partial(depth_figure, measures=["ncc_accuracy", "intrinsic_dimension"]),
    "weights": weights_figure,
}
"""Pictures of one run by the names of their files."""

MARKS = {"holds": ("✓", "#00694d"), "fails": ("✗", "#a33c00"), "inconclusive": ("?", SOFT)}


def figures(
    runs: Run | Sequence[Run],
    folder: Path,
    formats: Sequence[str] = ("png", "pdf"),
    *,
    only: Sequence[str] = (),
    projection: Projection = "pca",
) -> list[Path]:
    """Write the page's figures as files and return their paths.

    Curves of all runs share a figure; pictures are of the first seed of each spec, with its number in the file's name
    if there are several specs. `only` names the figures that are wanted (without that number); all if none.

    Raises:
        ValueError: without a run, for a damaged run, an unknown figure, format or projection.
    """
    check_formats(formats)
    check_projection(projection)
    found = views([runs] if isinstance(runs, Run) else runs)
    known = [s.id for s in charted_sections(found)] + ([*SHARED.values(), *PICTURES] if along_epochs(found) else [])
    for name in only:
        if name not in known:
            raise ValueError(f"no figure of these runs is named {name!r}; there are {', '.join(known)}")
    made = []
    with styled():
        for name, figure in _figures(found, projection, only):
            made += [save(figure, Path(folder) / f"{name}.{kind}") for kind in formats]
    return made


def _figures(found: Sequence[View], projection: Projection, only: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    for charted in charted_sections(found):
        if not only or charted.id in only:
            yield charted.id, section_figure(found, charted)
    trained = along_epochs(found)
    if not trained:
        return
    for section, name in SHARED.items():
        if not only or name in only:
            yield name, panels_figure(trained, section)
    firsts = [members[0] for members in groups(trained).values()]
    for i, v in enumerate(firsts):
        end = f"-{i + 1}" if len(firsts) > 1 else ""
        for name, draw in PICTURES.items():
            if not only or name in only:
                yield name + end, layers_figure(v, projection) if name == "layers" else draw(v)


def claim_figure(row: Mapping[str, Any], out: Path) -> Path:
    """Draw a claim's clauses to a .svg, .png or .pdf: the effect with its 95 % interval against the bound.

    The ground is shaded where the bound allows. `row` is a verdict as `page` takes it.

    Raises:
        ValueError: for another format, or a row without clauses.
    """
    check_formats([Path(out).suffix.lstrip(".").lower()])
    clauses = list(row.get("clauses") or ())
    if not clauses:
        raise ValueError(f"claim {row.get('id', '?')!r} has no clause to draw; run it first")
    mark, tone = MARKS.get(str(row.get("verdict")), MARKS["inconclusive"])
    with styled():
        figure = new_figure(7.2, 1.25 + 0.95 * len(clauses))
        for axes, clause in zip(figure.subplots(len(clauses), 1, squeeze=False)[:, 0], clauses, strict=True):
            _clause(axes, clause)
        head = f"{mark} {row.get('verdict', 'inconclusive')}:  {row.get('sentence', row.get('id', ''))}"
        figure.suptitle(plain(head, 110), x=0.012, ha="left", fontsize=11, fontweight="bold", color=tone, wrap=True)
        seeds = f"{row['seeds']} seeds, " if row.get("seeds") is not None else ""
        figure.supxlabel(
            plain(f"{seeds}bars: 95 % interval; shaded: where the claim holds. {row.get('source', '')}", 130),
            x=0.012, ha="left", fontsize=8, color=SOFT,
        )  # fmt: skip
        return save(figure, Path(out))


def _clause(axes: Any, clause: Mapping[str, Any]) -> None:
    effect, low, high, bound = (_number(clause.get(k)) for k in ("effect", "low", "high", "bound"))
    known = [x for x in (effect, low, high, bound) if math.isfinite(x)]
    unit = f" {clause['unit']}" if clause.get("unit") else ""
    direction = str(clause.get("direction", ""))
    sign = {"<=": "≤", ">=": "≥"}.get(direction, direction)
    told = f"{effect:.3g}{unit}" if math.isfinite(effect) else str(clause.get("reason") or "undefined")
    if math.isfinite(low) and math.isfinite(high):
        told += f" [{low:.3g}, {high:.3g}]"
    axes.set_title(
        plain(f"{clause.get('name', '')}: {told}, bound {sign} {bound:g}{unit}", 100), fontsize=9.5, weight="normal"
    )
    log = bool(known) and min(known) > 0 and max(known) / min(known) > 10
    if log:
        axes.set_xscale("log")
        pad = (max(known) / min(known)) ** 0.2
        left, right = min(known) / pad, max(known) * pad
    else:
        pad = 0.2 * ((max(known) - min(known)) or abs(max(known)) or 1.0) if known else 1.0
        left, right = (min(known) - pad, max(known) + pad) if known else (-1.0, 1.0)
    axes.set_xlim(left, right)
    if math.isfinite(bound):
        allowed = (left, bound) if direction.startswith("<") else (bound, right)
        axes.axvspan(*allowed, color="#009e73", alpha=0.14, lw=0)
        axes.axvline(bound, color=INK, ls="--", lw=1.2)
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [0, 0], color="#0072b2", lw=4, solid_capstyle="round")
    if math.isfinite(effect):
        axes.plot([effect], [0], "o", color="#0072b2", ms=9, mec="w", mew=1.2)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.minorticks_off()


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
