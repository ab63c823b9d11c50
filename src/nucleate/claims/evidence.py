"""What the runs of an experiment say: values of a measure at the start, at zero error and at the end, by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nucleate.runs import Record, Run

When = Literal["start", "zero", "end"]
Floats = NDArray[np.float64]


class Evidence:
    """Finished runs by arm, one for each seed, in the same order of seeds in every arm."""

    def __init__(self, arms: Mapping[str, Sequence[Run]]) -> None:
        self.arms = {name: [_Loaded(run) for run in runs] for name, runs in arms.items()}

    def values(self, arm: str, metric: str, when: When, *, layer: str = "penultimate", split: str = "train") -> Floats:
        """(seeds,) values of a measure; nan where zero error was not reached or the measure is not defined."""
        return np.array([run.value(metric, when, layer, split) for run in self.arms[arm]])

    def by_layer(self, arm: str, metric: str, when: When, *, split: str = "test") -> Floats:
        """(seeds, layers) values in order of depth, from the input on; layers without the measure are left out."""
        rows = [[run.value(metric, when, layer, split) for layer in run.layers] for run in self.arms[arm]]
        table = np.array(rows)
        return table[:, ~np.isnan(table).all(0)]

    def images(self, arm: str, name: str, when: When) -> Floats:
        """(seeds, images) values of single held-out points."""
        return np.stack([run.array(name, when) for run in self.arms[arm]])

    def where(self, arm: str, metric: str, *, split: str = "test", layer: str = "", **fields: Any) -> Floats:
        """(seeds,) values of the record that has these fields, as `density=0.1`; nan where there is none."""
        wanted = {"metric": metric, "split": split, "layer": layer, **fields}
        return np.array([run.find(wanted) for run in self.arms[arm]])

    def arrays(self, arm: str, file: str, name: str) -> Floats:
        """(seeds, ...) arrays of a tensor file."""
        return np.stack([run.run.tensors(file)[name].astype(np.float64) for run in self.arms[arm]])

    def along(
        self, arm: str, metric: str, field: str, /, *, split: str = "test", **where: Any
    ) -> tuple[list[Any], Floats]:
        """Values of a record's field, and the measure (seeds, values) at the last epoch or step, of a swept arm.

        Rows whose other fields are not as in `where` are left out; those of all seeds together count as one seed.
        """
        found: dict[tuple[Any, Any], float] = {}
        for run in self.arms[arm]:
            for r in run.run.records:
                named = r["metric"] == metric and r["split"] == split and field in r
                if named and all(r.get(k) == v for k, v in where.items()):
                    found[r["seed"], r[field]] = r["value"]
        seeds, places = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
        return places, np.array([[found.get((s, place), math.nan) for place in places] for s in seeds])

    def wrong(self, arm: str, cell: str) -> Floats:
        """(seeds, images) 1 where a descent arm's models of this cell are wrong on a test point, attacked or not."""
        predicted = self.predicted(arm, cell)
        labels = self.arms[arm][0].run.tensors("test")["labels"][: predicted.shape[1]]
        wrong: Floats = (predicted != labels).astype(np.float64)
        return wrong

    def predicted(self, arm: str, cell: str) -> Floats:
        """(seeds, images) classes that a descent arm's models of this cell predict."""
        run = self.arms[arm][0].run
        for name in run.tensor_names:
            if name.startswith("predicted-") and cell in (found := run.tensors(name)):
                classes: Floats = found[cell].astype(np.float64)
                return classes
        raise KeyError(cell)


class _Loaded:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.zero = int(run.env.get("zero_error_epoch", -1))
        self.layers: list[str] = run.env.get("layers", [])

    @cached_property
    def _index(self) -> dict[tuple[Any, ...], Record]:
        return {(r["metric"], r["epoch"], r["layer"], r["split"]): r for r in self.run.records}

    @cached_property
    def _end(self) -> int:
        return max(int(r["epoch"]) for r in self.run.records)

    def _epoch(self, when: When) -> int:
        return {"start": 0, "zero": self.zero, "end": self._end}[when]

    def find(self, wanted: Mapping[str, Any]) -> float:
        rows = (row for row in self._index.values() if all(row.get(k) == v for k, v in wanted.items()))
        row = next(rows, None)
        return math.nan if row is None else float(row["value"])

    def value(self, metric: str, when: When, layer: str, split: str) -> float:
        row = self._index.get((metric, self._epoch(when), layer, split))
        return math.nan if row is None else float(row["value"])

    def array(self, name: str, when: When) -> Floats:
        epoch = self._epoch(when)
        if epoch < 0:
            shape = self.run.tensors(f"epoch-{0:06d}")[name].shape
            return np.full(shape, math.nan)
        return self.run.tensors(f"epoch-{epoch:06d}")[name].astype(np.float64)
