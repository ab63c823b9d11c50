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
        caption="Time is that of the fastest form of each pruned network, against the best dense one, measured in "
        "turns on the machine that ran the comparison. Multiply-adds and bytes (bitmask and values) are counts.",
        optional=True,
        charts=tuple(
            Chart(
                title=f"Accuracy against {name}",
                metric="accuracy",
                y_label="share of points",
                along=metric,
                x="density",
                x_label=x_label,
                log_x=True,
                reverse_x=metric != "speedup",
                **_BY,
            )
            for name, metric, x_label in (
                ("measured time", "seconds", "seconds a point"),
                ("measured speed-up", "speedup", "times faster than the best dense form"),
                ("multiply-adds", "macs", "multiply-adds a point, in theory"),
                ("bytes", "bytes", "bytes"),
            )
        ),
    ),
    Section(
        id="compare-layers",
        study="compare",
        title="Where the weights are left",
        caption="A method that compares weights across layers decides how much each layer keeps; one that compares "
        "within layers keeps the same share of all.",
        optional=True,
        charts=(
            Chart(
                title="Kept share by layer",
                metric="density",
                x="layer",
                x_label="layer",
                y_label="kept share",
                split="",
                layer="*",
                log_y=True,
                each="density",
                **_BY,
            ),
        ),
    ),
    Section(
        id="compare-weights",
        study="compare",
        title="Sizes of the weights, before and after",
        caption="All prunable weights together, each in units of its layer's initial standard deviation: before "
        "pruning (1), and those that are left after pruning and further training.",
        optional=True,
        charts=(
            Chart(
                title="Weights",
                metric="weight_sizes",
                x="size",
                x_label="weight / initial standard deviation",
                y_label="share of the kept weights",
                split="",
                log_y=True,
                by=("density",),
                each="method",
            ),
        ),
    ),
    Section(
        id="compare-survivors",
        study="compare",
        title="What survives",
        caption="One seed. How many first-layer weights each input position keeps; or the first layer's kernels, "
        "summed over input channels, those that keep most weights first.",
        optional=True,
        charts=tuple(
            Chart(
                title=title,
                metric=metric,
                x="column",
                x_label="column",
                y="row",
                y_label="row from the bottom",
                split="",
                each="method",
                one_seed=True,
            )
            for title, metric in (("Weights of each input", "input_weights"), ("First-layer filters", "first_filters"))
        ),
    ),
)
