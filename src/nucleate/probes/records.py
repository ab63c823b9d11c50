"""What a probe returns: a list of records that shows itself as a table."""

from __future__ import annotations

import html
import math
from typing import Any

SHOWN = ("nc1", "nc1_quotient", "nc2_etf", "nc3", "nc4", "ncc_accuracy", "chi", "intrinsic_dimension", "method")
"""Columns of the table; "method" is how NC1 was taken."""


class Records(list[dict[str, Any]]):
    """Records of a probe, one flat dict a value.

    >>> rows = Records([{"layer": "fc", "split": "train", "metric": "nc1", "value": 0.5, "method": "project"}])
    >>> rows.value("fc", "nc1")
    0.5
    >>> print(rows.table())
    train  nc1  method
    fc     0.5  project
    """

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in depth order."""
        return list(dict.fromkeys(row["layer"] for row in self if row["layer"]))

    def value(self, layer: str, metric: str, split: str = "train") -> float:
        """One value.

        Raises:
            KeyError: if it was not measured.
        """
        return float(self.record(layer, metric, split)["value"])

    def record(self, layer: str, metric: str, split: str = "train") -> dict[str, Any]:
        """One record.

        Raises:
            KeyError: if it was not measured.
        """
        for row in self:
            if (row["layer"], row["metric"], row["split"]) == (layer, metric, split):
                return row
        raise KeyError(f"{metric!r} of layer {layer!r} was not measured on the {split} split")

    def table(self, split: str = "train") -> str:
        """One line a layer, as text."""
        cells = self._cells(split)
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        parts = []
        for split in dict.fromkeys(row["split"] for row in self):
            head, *body = self._cells(split)
            rows = ["".join(f"<th>{html.escape(c)}</th>" for c in head)]
            rows += ["".join(f"<td>{html.escape(c)}</td>" for c in line) for line in body]
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
        return "".join(parts)

    def _cells(self, split: str) -> list[list[str]]:
        values = {(r["layer"], r["metric"]): r for r in self if r["split"] == split and r["layer"]}
        layers = list(dict.fromkeys(layer for layer, _ in values))
        measured = {metric for _, metric in values} | {"method"}
        columns = [c for c in SHOWN if c in measured]
        body = []
        for layer in layers:
            line = [layer]
            for column in columns:
                row = values.get((layer, "nc1" if column == "method" else column), {})
                value = row.get("method", "") if column == "method" else row.get("value", math.nan)
                line.append(value if isinstance(value, str) else "" if math.isnan(value) else f"{value:.4g}")
            body.append(line)
        return [[split, *columns], *body]
