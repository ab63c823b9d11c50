"""What the pruning of one network shows."""

from __future__ import annotations

from nucleate.report.charts.chart import Chart, Section

SECTIONS = (
    Section(
        id="prune",
        study="prune",
        title="The pruned network",
        caption="What is left of each layer, and the densities that were tried on validation points.",
        charts=(
            Chart(
                title="Kept share by layer",
                metric="density",
                x="layer",
                x_label="layer",
                y_label="kept share",
                by=("recipe",),
                split="",
                layer="*",
            ),
            Chart(
                title="The measure along density, validation points",
                metric="accuracy",
                x="density",
                x_label="kept share of prunable weights",
                y_label="accuracy",
                by=("recipe",),
                split="validation",
                log_x=True,
                reverse_x=True,
            ),
        ),
    ),
)
