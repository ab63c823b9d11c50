"""Charts of studies that sweep something other than epochs: the numbers, the page, the files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from nucleate.report import charts, figures, page
from nucleate.report.charts import Chart, Section
from nucleate.report.charts.chart import curves, grid, labels, section_curves
from nucleate.report.gather import views
from nucleate.runs import find_runs

ALONG = Chart(
    title="Accuracy",
    metric="accuracy",
    x="density",
    x_label="density",
    y_label="accuracy",
    by=("method",),
    log_x=True,
    reverse_x=True,
)
HEAT = Chart(title="Map", metric="accuracy", x="density", y="data.noise", x_label="density", y_label="noise")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three seeds of two methods at three densities, one run a seed."""
    section = Section(id="demo", study="demo", title="Demo", caption="A caption.", charts=(ALONG, HEAT))
    monkeypatch.setattr(charts, "SECTIONS", (section,))
    for seed in (0, 1, 2):
        folder = tmp_path / f"demo-{seed}"
        folder.mkdir()
        (folder / "spec.toml").write_text(f'study = "demo"\nrecipe = "r"\nseed = {seed}\n\n[data]\nnoise = 0.2\n')
        (folder / "env.json").write_text("{}")
        (folder / "DONE").touch()
        rows = [
            {
                "seed": seed,
                "metric": "accuracy",
                "split": "test",
                "layer": "",
                "density": d,
                "method": m,
                "value": v + seed,
            }
            for m, base in (("snip", 1.0), ("<b>random</b>", 0.0))
            for d, v in ((1.0, base + 3), (0.1, base + 1), (0.5, base + 2))
        ]
        (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_curves_are_means_over_seeds_with_students_interval(sweep: Path) -> None:
    snip, other = curves(views(find_runs(sweep)), "demo", ALONG)
    assert snip.label == "snip" and other.label == "<b>random</b>"
    assert snip.x == [0.1, 0.5, 1.0] and snip.mean == [3.0, 4.0, 5.0] and snip.seeds == [3, 3, 3]
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert snip.low[0] == pytest.approx(3.0 - half) and snip.high[0] == pytest.approx(3.0 + half)
    assert curves(views(find_runs(sweep)), "another", ALONG) == []


def test_two_seeds_have_no_band_and_the_page_says_so(sweep: Path, tmp_path: Path) -> None:
    few = find_runs(sweep)[:2]
    assert all(math.isnan(v) for c in curves(views(few), "demo", ALONG) for v in c.low + c.high)
    assert "mean of n = 2 seeds, too few for an interval" in page(few, tmp_path / "two.html").read_text()
    assert "mean and 95 % interval of n = 3 seeds" in page(find_runs(sweep), tmp_path / "three.html").read_text()


def test_a_second_measure_beside_the_first_and_charts_that_nobody_fills(sweep: Path) -> None:
    path = sorted(sweep.glob("*/records.jsonl"))[0]
    row = json.loads(path.read_text().splitlines()[0]) | {"metric": "chance", "value": 0.5}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    found = views(find_runs(sweep))
    both = replace(ALONG, beside=("chance", "by chance"))
    assert [c.label for c in curves(found, "demo", both)] == ["snip", "<b>random</b>", "by chance"]
    path.write_text(path.read_text() + json.dumps(row | {"metric": "absent", "value": math.nan}) + "\n")
    found = views(find_runs(sweep))
    absent = replace(both, metric="absent")
    assert curves(found, "demo", absent) == []
    section = Section(id="s", study="demo", title="S", caption="", charts=(ALONG, replace(absent, optional=True)))
    assert section.shown(found) == (ALONG,)


def test_a_heat_map_reads_the_spec_too(sweep: Path) -> None:
    xs, ys, values = grid(views(find_runs(sweep)), "demo", HEAT)
    assert xs == [0.1, 0.5, 1.0] and ys == [0.2] and values[0][2] == pytest.approx(4.0)


def test_page_and_files(sweep: Path, tmp_path: Path) -> None:
    text = page(find_runs(sweep), tmp_path / "page.html").read_text()
    assert 'id="demo"' in text and "A caption." in text and 'id="etf"' not in text
    assert "<b>random</b>" not in text
    made = figures(find_runs(sweep), tmp_path / "figures", ("png",))
    assert [p.name for p in made] == ["demo.png"] and made[0].stat().st_size > 10_000


def test_a_measure_can_be_drawn_along_another(sweep: Path) -> None:
    for path in sweep.glob("*/records.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        more = [{**r, "metric": "macs", "split": "", "value": 100 * r["density"] + r["seed"]} for r in rows]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows + more))
    plain, moved = (curves(views(find_runs(sweep)), "demo", c)[0] for c in (ALONG, replace(ALONG, along="macs")))
    # Means over seeds 0, 1 and 2: geometric, since x is drawn on a log axis.
    assert moved.x == pytest.approx([math.cbrt(100 * d * (100 * d + 1) * (100 * d + 2)) for d in plain.x])
    assert (moved.mean, moved.low, moved.seeds) == (plain.mean, plain.low, plain.seeds)
    assert curves(views(find_runs(sweep)), "demo", replace(ALONG, along="absent")) == []


def test_one_name_means_one_curve_in_all_charts_of_a_section(sweep: Path) -> None:
    """A chart that has one method only still calls it by its name where another chart has two."""
    one = replace(ALONG, by=("recipe", "method"), where=(("method", "snip"),))
    both = replace(one, where=())
    section = Section(id="s", study="demo", title="S", caption="", charts=(both, one, HEAT))
    drawn = section_curves(views(find_runs(sweep)), section)
    assert [[c.label for c in several] for _, several in drawn] == [["snip", "<b>random</b>"], ["snip"], []]
    assert labels(drawn) == ["snip", "<b>random</b>"]
    assert [c.label for c in curves(views(find_runs(sweep)), "demo", one)] == ["r"]


def test_a_chart_for_each_value_of_a_field_and_for_one_seed(sweep: Path) -> None:
    found = views(find_runs(sweep))
    section = Section(id="s", study="demo", title="S", caption="", charts=(replace(ALONG, each="method"),))
    first, second = section.shown(found)
    assert (first.title, second.title) == ("Accuracy, snip", "Accuracy, <b>random</b>")
    assert [c.mean for c in curves(found, "demo", second)] == [[2.0, 3.0, 4.0]]
    (by_density,) = (replace(section, charts=(replace(ALONG, x="method", each="density"),)),)
    assert [c.title for c in by_density.shown(found)] == [f"Accuracy, density {d}" for d in (1.0, 0.5, 0.1)]
    (one,) = curves(found, "demo", replace(first, one_seed=True))
    assert one.mean == [2.0, 3.0, 4.0] and one.seeds == [1, 1, 1]
