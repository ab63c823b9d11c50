"""Records become series, seeds become bands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleate.report import page
from nucleate.report.gather import band, groups, interval, view, views
from nucleate.report.payload import MAX_PICTURES, embed, pack, pictured
from nucleate.report.summary import summary
from nucleate.runs import Run, find_runs, write_run
from nucleate.spec import CollapseSpec, TicketsSpec

Build = Callable[..., Run]


def test_seeds_of_one_spec_form_a_group_and_specs_do_not(build: Build, tmp_path: Path) -> None:
    runs = [build(tmp_path, seed=s, loss=loss, tensors=False) for loss in ("cross-entropy", "mse") for s in (0, 1, 2)]
    found = views(runs)
    grouped = groups(found)
    assert {k: len(v) for k, v in grouped.items()} == {
        "digits-mlp, loss cross-entropy": 3,
        "digits-mlp, loss mse": 3,
    }
    assert len({v.label for v in found}) == 6


def test_a_band_is_the_t_interval_over_seeds(build: Build, tmp_path: Path) -> None:
    members = views([build(tmp_path, seed=s, tensors=False) for s in range(4)])
    key = ("logit_norm", "", "train")
    curve = band(members, key)
    assert curve is not None
    at = curve.epochs.index(100)
    values = np.array([v.series[key].at(100) for v in members])
    from scipy import stats

    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    np.testing.assert_allclose([curve.low[at], curve.mean[at], curve.high[at]], [low, values.mean(), high])


def test_two_seeds_have_no_band(build: Build, tmp_path: Path) -> None:
    curve = band(views([build(tmp_path, seed=s, tensors=False) for s in range(2)]), ("logit_norm", "", "train"))
    assert curve is not None and np.isfinite(curve.mean).all() and np.isnan(curve.low + curve.high).all()


def test_seeds_that_one_run_trains_are_all_in_its_label(tmp_path: Path) -> None:
    with write_run(tmp_path, TicketsSpec(seed=3, seeds=4), env={}) as writer:
        writer.append([{"study": "tickets", "seed": 3, "epoch": 0, "layer": "", "metric": "loss", "value": 1.0}])
    assert [v.label for v in views(find_runs(tmp_path))] == ["digits-lenet, seeds 3 to 6"]


def test_more_classes_than_a_simplex_has_room_for_are_why_there_is_none(tmp_path: Path) -> None:
    row = {"study": "collapse", "seed": 0, "epoch": 0, "layer": "penultimate", "split": "train", "value": 0.6}
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.append([row | {"metric": "gnc2_optimum"}])
    (found,) = views(find_runs(tmp_path))
    assert "more classes than d + 1" in found.why_not_drawn("etf")
    assert found.why_not_drawn("logits") == "the run stored no tensor logits"


def test_on_log_axes_the_interval_is_of_the_logarithm() -> None:
    low, mid, high = interval([1.0, 100.0], log=True)
    assert mid == pytest.approx(10.0) and low * high == pytest.approx(100.0) and low > 0
    assert interval([0.0, 2.0], log=True)[1] == 1.0, "a zero has no logarithm: the plain mean it is"


def test_an_epoch_that_a_finished_seed_lacks_is_no_part_of_the_mean(build: Build, tmp_path: Path) -> None:
    members = views(
        [
            build(tmp_path, seed=0, tensors=False),
            build(tmp_path, seed=1, tensors=False, epochs=(0, 1, 10, 100)),
            build(tmp_path, seed=2, tensors=False, epochs=(0, 1, 3), finished=False),
        ]
    )
    curve = band(members, ("loss", "", "train"))
    assert curve is not None and curve.epochs == [0, 1, 10, 100] and curve.seeds == 3


def test_the_same_run_twice_counts_once(build: Build, tmp_path: Path) -> None:
    run = build(tmp_path, tensors=False)
    assert len(views([run, run])) == 1
    with pytest.raises(ValueError, match="no run"):
        views([])


def test_other_k_is_another_measure_and_reasons_are_kept(tmp_path: Path) -> None:
    base = {"study": "collapse", "seed": 0, "step": 0, "epoch": 1, "layer": "input", "split": "test", "metric": "chi"}
    with write_run(tmp_path, CollapseSpec(), env={}) as writer:
        writer.append(
            [
                base | {"value": 0.5, "k": 5, "chance": 0.1},
                base | {"value": 0.4, "k": 30},
                base | {"metric": "nc1_vci", "value": math.nan, "reason": "fewer points than dimensions"},
            ]
        )
    found = view(Run(writer.path))
    assert found.series["chi", "input", "test"].values == [0.5]
    assert found.series["chi", "input", "test"].chance == [0.1]
    assert found.series["chi@30", "input", "test"].values == [0.4]
    assert found.why(("nc1_vci", "input", "test")) == "fewer points than dimensions"
    assert "no train record of 'nc3'" in found.why(("nc3", "", "train"))


def test_the_table_says_how_much_changed(build: Build, tmp_path: Path) -> None:
    run = build(tmp_path, tensors=False)
    rows = {(r.metric, r.split): r for r in summary(views([run]))}
    ends = {e: view(run).series["nc3", "penultimate", "train"].at(e) for e in (10, 100)}
    assert rows["nc3", "train"].change == (f"↓ {ends[10] / ends[100]:.3g}x", "")
    assert rows["nc4", "train"].change[0] == "to 0"
    assert rows["accuracy", "test"].change[0].endswith(" points")
    assert rows["accuracy", "test"].change[0].startswith("+")


def test_packed_numbers_come_back_within_a_step() -> None:
    import base64

    values = np.array([[-3.0, 0.25], [math.nan, 7.0]])
    packed = pack(values)
    whole = np.frombuffer(base64.b64decode(packed["data"]), "<u2").reshape(packed["shape"])
    back = np.where(whole == 65535, math.nan, packed["low"] + whole * packed["step"])
    np.testing.assert_allclose(back, values, atol=packed["step"] / 2)
    assert packed["step"] <= 10 / 65000


def test_embedded_json_cannot_leave_its_element() -> None:
    nasty = {"</script><script>alert(1)</script>": ["<!--", "&amp;", "\u2028\u2029", "]]>"]}
    text = embed(nasty)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == nasty


def test_a_page_carries_the_pictures_of_first_seeds_first(build: Build, tmp_path: Path) -> None:
    runs: list[Any] = [build(tmp_path, seed=s, tensors=False) for s in range(MAX_PICTURES + 3)]
    runs.append(build(tmp_path, seed=0, loss="mse", tensors=False))
    drawn = pictured(views(runs))
    assert len(drawn) == MAX_PICTURES
    assert any("mse" in v.label for v in drawn)


def test_any_folder_with_records_makes_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "probe-mine"
    folder.mkdir()
    (folder / "spec.toml").write_text('study = "probe"\n')
    (folder / "env.json").write_text("{}")
    rows = [
        {"layer": layer, "split": "test", "metric": "chi", "value": value} for layer, value in (("a", 0.2), ("b", 0.9))
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (found,) = views([Run(folder)])
    assert found.layers == ["a", "b"] and found.end == 0 and found.label == "probe-mine"
    assert page([Run(folder)], tmp_path / "page.html").exists()
