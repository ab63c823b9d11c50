"""What a comparison of pruning methods shows."""

from __future__ import annotations

from typing import Any

from nucleate.report.charts.chart import Chart, Section

_BY: dict[str, Any] = {"by": ("method",)}
_DENSITY: dict[str, Any] = {
    "x": "density",
    "x_label": "kept share of prunable weights",
    "log_x": True,
    "reverse_x": True,
}

SECTIONS = (
    Section(
        id="compare",
        study="compare",
        title="Pruning methods compared",
        caption="Each method prunes the same trained networks; dense is the control that prunes nothing and has the "
        "same further training. A method is worth its name where it lies above random.",
        charts=(
            Chart(title="Held-out accuracy", metric="accuracy", y_label="share of points", **_DENSITY, **_BY),
            Chart(title="Held-out loss", metric="loss", y_label="mean loss", log_y=True, **_DENSITY, **_BY),
            Chart(
                title="Accuracy before further training",
                metric="accuracy_before_training",
                y_label="share of points",
                **_DENSITY,
                **_BY,
            ),
            Chart(title="Accuracy under PGD", metric="pgd_accuracy", y_label="share of points", **_DENSITY, **_BY),
            Chart(title="Calibration error", metric="ece", y_label="expected calibration error", **_DENSITY, **_BY),
        ),
    ),
    Section(
        id="compare-cost",
        study="compare",
        title="What the pruned networks cost",
        caption="Multiply-adds and bytes that are left. Theory, from counts: time is measured, not computed from them.",
        charts=(
            Chart(
                title="Multiply-adds a point",
                metric="macs",
                split="",
                y_label="multiply-adds",
                log_y=True,
                **_DENSITY,
                **_BY,
            ),
            Chart(
                title="Bytes, bitmask and values",
                metric="bytes",
                split="",
                y_label="bytes",
                log_y=True,
                **_DENSITY,
                **_BY,
            ),
        ),
    ),
)
