"""Section of the connectivity study."""

from __future__ import annotations

from nucleate.report.charts.chart import Chart, Section

SECTIONS = (
    Section(
        id="connectivity",
        study="connectivity",
        title="Linear mode connectivity",
        caption="Two copies trained with different noise from step k: where the barrier is gone (below two "
        "points, by custom), the network is stable, and tickets can be found from there.",
        charts=(
            Chart(
                title="Error barrier against the step at which the copies part",
                metric="error_barrier",
                x="k",
                x_label="step k",
                y_label="rise of the test error above the ends' mean",
                by=("arm", "statistics"),
            ),
            Chart(
                title="Test error along the line",
                metric="error",
                x="position",
                x_label="share of the second network",
                y_label="test error",
                by=("arm", "k", "statistics"),
            ),
        ),
    ),
)
