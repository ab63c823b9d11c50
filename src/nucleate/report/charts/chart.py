"""What a chart is, and the numbers it shows: records of many runs, gathered along one of their fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nucleate.report.gather import View, banded


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A measure along a field of the records, one curve for each combination of other fields; or a heat map."""

    title: str
    metric: str
    x: str
    """Field of the records (or of the spec: "data.label_noise") along which the measure is drawn."""
    x_label: str
    y_label: str
    by: tuple[str, ...] = ()
    """Fields whose values tell the curves apart, in records or in the spec."""
    y: str = ""
    """Second field: the chart is then a heat map, the measure its colour."""
    split: str = "test"
    layer: str = ""
    """"*" for all layers, when they are the x axis."""
    log_x: bool = False
    log_y: bool = False
    reverse_x: bool = False
    """Largest first, as densities are read."""
    main: tuple[str, ...] = ()
    """Curves drawn from the start; all if empty."""
    where: tuple[tuple[str, Any], ...] = ()
    """Fields and the values that rows must have to be drawn."""
    along: str = ""
    """Metric (of the whole network, no split) whose mean over seeds is drawn along x in the place of the field `x`."""
    each: str = ""
    """Field for whose every value there is a chart of its own."""
    one_seed: bool = False
    """Only the first seed's rows: a picture, not a mean."""
    beside: tuple[str, str] = ("", "")
    """Second metric whose curve is drawn in the same panel, and what it is called."""
    optional: bool = False
    """Left out where no run holds a finite value of the measure."""
    mark: str = ""
    """Metric whose values are places along x, drawn as dotted lines."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Charts of a study under one heading."""

    id: str
    study: str
    title: str
    caption: str
    charts: tuple[Chart, ...]
    optional: bool = False
    """Left out, and so are its charts, where the runs hold fewer than two places along x (or y)."""

    def shown(self, found: Sequence[View]) -> tuple[Chart, ...]:
        """Charts that these runs have something to say to, those with `each` once for each of its values."""
        charts = [chart for c in self.charts for chart in (_every(found, self.study, c) if c.each else (c,))]
        held = [c for c in charts if not c.optional or _known(found, self.study, c)]
        return tuple(c for c in held if not self.optional or _varies(found, self.study, c))


@dataclass
class Curve:
    """Mean over seeds at each x, with Student's 95 % interval; nan for fewer than `gather.BAND_SEEDS`."""

    label: str
    x: list[Any] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


def curves(found: Sequence[View], study: str, chart: Chart, telling: Sequence[str] | None = None) -> list[Curve]:
    """The chart's curves over all runs of its study; none if no run holds the measure.

    A seed counts once at each x: its last record. Numbers along x are sorted, words keep their order. Curves are named
    by those of the chart's fields that are in `telling`, or, without it, that tell its curves apart.
    """
    table: dict[str, dict[Any, dict[Any, float]]] = {}
    rows = list(_rows(found, study, chart))
    names = [name for name in chart.by if name in (_telling(rows, chart) if telling is None else telling)]
    for v, row in rows:
        x = look_up(v, row, chart.x)
        own = [(name, look_up(v, row, name)) for name in names or chart.by[:1]]
        label = ", ".join(_told(name, value) for name, value in own if value is not None) or chart.y_label
        seed = row.get("seed", v.seed)
        table.setdefault(label, {}).setdefault(x, {})[seed] = float(row["value"])
    out = []
    for label, points in table.items():
        numeric = all(isinstance(x, int | float) for x in points)
        curve = Curve(label)
        for x in sorted(points) if numeric else points:
            values = [value for value in points[x].values() if math.isfinite(value)]
            if not values:
                continue
            low, mean, high = banded(values, log=chart.log_y)
            curve.x.append(x)
            curve.mean.append(mean)
            curve.low.append(low)
            curve.high.append(high)
            curve.seeds.append(len(values))
        if curve.x:
            out.append(curve)
    metric, name = chart.beside
    if metric and out:
        out += curves(found, study, replace(chart, metric=metric, y_label=name, by=(), beside=("", "")))
    if chart.along:
        places = replace(chart, metric=chart.along, split="", along="", log_y=chart.log_x)
        found_at = {c.label: dict(zip(c.x, c.mean, strict=True)) for c in curves(found, study, places, names)}
        return [moved for c in out if (moved := _moved(c, found_at.get(c.label, {}))).x]
    return out


def _moved(curve: Curve, places: Mapping[Any, float]) -> Curve:
    """The curve with other places along x, sorted by them; points that have none are left out."""
    order = sorted((places[x], i) for i, x in enumerate(curve.x) if x in places)
    lists = ("mean", "low", "high", "seeds")
    return Curve(curve.label, [x for x, _ in order], *([getattr(curve, n)[i] for _, i in order] for n in lists))


def section_curves(found: Sequence[View], section: Section) -> list[tuple[Chart, list[Curve]]]:
    """Charts of a section with their curves, none for a heat map; one name means one thing in all of them."""
    shown = section.shown(found)
    drawn = [chart for chart in shown if not chart.y]
    telling = {name for c in drawn for name in _telling(list(_rows(found, section.study, c)), c)}
    return [(c, [] if c.y else curves(found, section.study, c, tuple(telling))) for c in shown]


def labels(charts: Sequence[tuple[Chart, Sequence[Curve]]]) -> list[str]:
    """Names of all curves of a section, in the order of their colours."""
    return list(dict.fromkeys(curve.label for _, several in charts for curve in several))


def _telling(rows: Sequence[tuple[View, dict[str, Any]]], chart: Chart) -> set[str]:
    """Fields of `by` that have more than one value."""
    return {name for name in chart.by if len({str(look_up(v, row, name)) for v, row in rows}) > 1}


def marks(found: Sequence[View], study: str, chart: Chart) -> list[float]:
    """Places of the chart's dotted lines, at most six."""
    if not chart.mark:
        return []
    rows = (row for v in found if v.study == study for row in v.rows if row["metric"] == chart.mark)
    return sorted({float(row["value"]) for row in rows if math.isfinite(row["value"])})[:6]


def grid(found: Sequence[View], study: str, chart: Chart) -> tuple[list[Any], list[Any], list[list[float]]]:
    """X values, y values and the mean over seeds (y, x) of a heat map; nan where nothing was measured."""
    cells: dict[tuple[Any, Any], dict[Any, float]] = {}
    for v, row in _rows(found, study, chart):
        at = look_up(v, row, chart.x), look_up(v, row, chart.y)
        cells.setdefault(at, {})[row.get("seed", v.seed)] = float(row["value"])
    xs, ys = (sorted({at[i] for at in cells}) for i in (0, 1))

    def mean(x: Any, y: Any) -> float:
        values = [value for value in cells.get((x, y), {}).values() if math.isfinite(value)]
        return sum(values) / len(values) if values else math.nan

    return xs, ys, [[mean(x, y) for x in xs] for y in ys]


def look_up(v: View, row: dict[str, Any], name: str) -> Any:
    """Field of a record, or of its run's spec by a dotted path; None if neither has it."""
    if name in row:
        return row[name]
    value: Any = v.spec
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _field(v: View, row: dict[str, Any], name: str) -> Any:
    value = look_up(v, row, name)
    return "" if value is None else value


def _told(name: str, value: Any) -> str:
    """A number needs its field's name beside it, a word tells for itself."""
    plain = isinstance(value, str) or value is None
    return str(value) if plain else f"{name.rsplit('.', 1)[-1]} {value}"


def _every(found: Sequence[View], study: str, chart: Chart) -> list[Chart]:
    values = dict.fromkeys(look_up(v, row, chart.each) for v, row in _rows(found, study, chart))
    numeric = all(isinstance(value, int | float) for value in values)
    return [
        replace(chart, title=f"{chart.title}, {_told(chart.each, value)}", where=(*chart.where, (chart.each, value)))
        for value in (sorted(values, reverse=True) if numeric else values)
    ]


def _known(found: Sequence[View], study: str, chart: Chart) -> bool:
    return any(math.isfinite(float(row["value"])) for _, row in _rows(found, study, chart))


def _varies(found: Sequence[View], study: str, chart: Chart) -> bool:
    seen: dict[str, set[Any]] = {name: set() for name in (chart.x, *filter(None, (chart.y,)))}
    for v, row in _rows(found, study, chart):
        for name, values in seen.items():
            values.add(look_up(v, row, name))
    return all(len(values) > 1 for values in seen.values())


def _rows(found: Sequence[View], study: str, chart: Chart) -> Iterator[tuple[View, dict[str, Any]]]:
    wanted = {"metric": chart.metric, "split": chart.split, **dict(chart.where)}
    if chart.layer != "*":
        wanted["layer"] = chart.layer
    own = [v for v in found if v.study == study]
    first = min((v.seed for v in own), key=str, default="") if chart.one_seed else None
    for v in own:
        if chart.one_seed and v.seed != first:
            continue
        for row in v.rows_of(chart.metric):
            named = all(look_up(v, row, name) is not None for name in (chart.x, *filter(None, (chart.y,))))
            if named and all(_field(v, row, k) == value for k, value in wanted.items()):
                yield v, row
