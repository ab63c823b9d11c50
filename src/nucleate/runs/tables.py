"""Runs as rows: filter them, compare what differs, write tables."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nucleate.runs.store import Run, RunError, write_atomic

FORMATS = (".csv", ".json", ".parquet")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names.

    >>> flat({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def matching(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs whose spec has all the values, each condition `field=value`; `done=true` and `done=false` work too.

    Raises:
        RunError: for a condition of another form, or a field that no run has.
    """
    rows = [flat(run.spec) | {"done": run.done} for run in runs]
    wanted = []
    for condition in conditions:
        name, sign, value = condition.partition("=")
        if not sign:
            raise RunError(f"a filter is field=value, as in train.lr=0.1, not {condition!r}")
        if rows and not any(name in row for row in rows):
            raise RunError(f"no run has a field {name!r}; there are {', '.join(sorted(set().union(*rows)))}")
        wanted.append((name, value))
    return [
        run for run, row in zip(runs, rows, strict=True) if all(_same(row.get(name), value) for name, value in wanted)
    ]


def _same(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def differing(runs: Sequence[Run]) -> list[str]:
    """Fields of the specs in which the runs differ, sorted."""
    rows = [flat(run.spec) for run in runs]
    names = sorted(set().union(*rows))
    return [name for name in names if len({json.dumps(row.get(name), default=str) for row in rows}) > 1]


def last_values(run: Run) -> dict[str, float]:
    """The last value of every metric of the network and its penultimate layer, as `split layer metric`."""
    out: dict[str, float] = {}
    for row in run.records:
        if row.get("layer", "") in ("", "penultimate") and isinstance(row.get("value"), int | float):
            name = " ".join(filter(None, (row.get("split", ""), row.get("layer", ""), str(row.get("metric", "")))))
            out[name] = row["value"]
    return out


def comparison(runs: Sequence[Run], metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row a run: its name, the fields in which the runs differ, and the last values of the metrics (all if none).

    Raises:
        RunError: for a metric that no run has.
    """
    fields = differing(runs)
    values = [last_values(run) for run in runs]
    known = list(dict.fromkeys(name for row in values for name in row))
    chosen = [name for name in known if not metrics or name in metrics or name.split(" ")[-1] in metrics]
    for metric in metrics:
        if not any(metric in (name, name.split(" ")[-1]) for name in known):
            raise RunError(f"no run has a metric {metric!r}; there are {', '.join(known) or 'none'}")
    rows = []
    for run, last in zip(runs, values, strict=True):
        spec = flat(run.spec)
        row: dict[str, Any] = {"run": run.path.name} | {name: spec.get(name) for name in fields}
        rows.append(row | {name: last.get(name, math.nan) for name in chosen})
    return rows


def tidy(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All records of all runs, each with its run's name and the fields in which the runs differ."""
    fields = differing(runs)
    rows = []
    for run in runs:
        spec = flat(run.spec)
        own = {"run": run.path.name} | {name: spec.get(name) for name in fields}
        rows += [own | row for row in run.records]
    return rows


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as .csv, .json or .parquet, by the file's name; values that are not finite are left empty.

    Raises:
        RunError: for another ending, or a file that cannot be written.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    clean = [{name: _plain(row.get(name)) for name in names} for row in rows]
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(clean)
        content = text.getvalue().encode()
    elif path.suffix == ".json":
        content = (json.dumps(clean, indent=1, allow_nan=False) + "\n").encode()
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        out = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table({n: _column([r[n] for r in clean]) for n in names}), out)
        content = out.getvalue().to_pybytes()
    else:
        raise RunError(f"a table is written as {', '.join(FORMATS)}, not {path.name!r}")
    write_atomic(path, content)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json.dumps(value) if isinstance(value, list | dict) else value


def _column(values: list[Any]) -> list[Any]:
    """A parquet column has one type: numbers become floats, anything mixed becomes text."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {int, float}:
        return [None if v is None else float(v) for v in values]
    return [None if v is None else str(v) for v in values] if len(kinds) > 1 else values
