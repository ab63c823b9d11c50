"""Figures as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nucleate.report import claim_figure, figures, files
from nucleate.report.curves import depth_figure, panels_figure
from nucleate.report.gather import views
from nucleate.report.pictures import layers_figure, simplex_figure
from nucleate.report.style import save, styled
from nucleate.runs import Run

Build = Callable[..., Run]
NAMES = {"simplex", "etf", "logits", "layers", "boundary", "chi", "depth", "weights", "nc", "accuracy", "cells"}


def test_every_figure_is_written_and_matplotlib_is_left_as_it_was(build: Build, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    made = figures(build(tmp_path), tmp_path / "out", formats=["png"])
    assert dict(mpl.rcParams) == before
    assert {p.stem for p in made} >= NAMES
    for path in made:
        with Image.open(path) as image:
            assert min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_a_file_is_the_same_twice(build: Build, tmp_path: Path) -> None:
    found = views([build(tmp_path, tensors=False)])
    for kind in ("pdf", "svg"):
        with styled():
            made = [save(panels_figure(found, "logits"), tmp_path / f"{i}.{kind}").read_bytes() for i in range(2)]
        assert made[0] == made[1]


def test_both_formats_come_for_each_figure(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_figures", lambda found, projection, only: [("nc", panels_figure(found, "nc"))])
    made = files.figures(build(tmp_path, tensors=False), tmp_path)
    assert [p.name for p in made] == ["nc.png", "nc.pdf"] and made[1].read_bytes().startswith(b"%PDF")


def test_an_empty_unfinished_run_still_has_figures(build: Build, tmp_path: Path) -> None:
    run = build(tmp_path, tensors=False, epochs=(0, 1), finished=False, drop=("chi", "nc3"))
    assert len(figures(run, tmp_path / "out", formats=["png"])) >= len(NAMES)


def test_names_that_look_like_mathematics(build: Build, tmp_path: Path) -> None:
    names = [r"$\frac{1}$", "a $ b", "<img src=x>"]
    layers = ("in$put", "$x^$", "b", "penultimate", "logits")
    (found,) = views([build(tmp_path, classes=3, class_names=names, layer_names=layers)])
    with styled():
        for i, figure in enumerate(
            (simplex_figure(found, "etf"), layers_figure(found, "pca"), depth_figure(found, ["chi"]))
        ):
            assert save(figure, tmp_path / f"{i}.svg").exists()


def test_two_classes_are_a_segment(build: Build, tmp_path: Path) -> None:
    (found,) = views([build(tmp_path, classes=2)])
    with styled():
        figure = simplex_figure(found, "probs")
    assert len(figure.axes) == 3
    end = [c.get_offsets() for c in figure.axes[-1].collections]
    for places, corner in zip(end, (-0.5, 0.5), strict=True):
        assert np.asarray(places)[:, 0] == pytest.approx(np.full(20, corner), abs=0.02)


def test_an_unknown_format_is_refused_before_any_work(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="png, pdf, svg, not 'gif'"):
        figures(build(tmp_path, tensors=False), tmp_path / "out", formats=["png", "gif"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_a_claim_is_drawn(verdicts: list[dict[str, Any]], tmp_path: Path, kind: str) -> None:
    for row in verdicts:
        path = claim_figure(row, tmp_path / f"{row['id']}.{kind}")
        assert path.stat().st_size > 2000


@pytest.mark.parametrize(("direction", "inside"), [("<", True), ("<=", True), (">", False), (">=", False)])
def test_the_ground_is_shaded_where_the_bound_allows(direction: str, inside: bool) -> None:
    axes = Figure().subplots()
    files._clause(axes, {"name": "n", "effect": 0.2, "low": 0.1, "high": 0.3, "bound": 0.5, "direction": direction})
    (ground,) = axes.patches
    assert (ground.get_x() <= 0.2 <= ground.get_x() + ground.get_width()) == inside
    assert {"<=": "≤", ">=": "≥"}.get(direction, direction) in axes.get_title()


def test_a_claim_without_numbers(verdicts: list[dict[str, Any]], tmp_path: Path) -> None:
    row = verdicts[0] | {"clauses": []}
    with pytest.raises(ValueError, match="no clause"):
        claim_figure(row, tmp_path / "x.svg")
    undefined = dict.fromkeys(("effect", "low", "high"), None) | {"name": "n", "bound": 1.0, "direction": "<="}
    assert claim_figure(row | {"clauses": [undefined | {"reason": "one seed"}]}, tmp_path / "x.svg").exists()
