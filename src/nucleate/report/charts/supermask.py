"""Section of the supermask study."""

from __future__ import annotations

from nucleate.report.charts.chart import Chart, Section

SECTIONS = (
    Section(
        id="supermask",
        study="supermask",
        title="What a random network already contains",
        caption="The error of the best subset of random candidates falls geometrically with their number, a straight "
        "line here; masks on frozen weights come the nearer to training the wider the network is.",
        charts=(
            Chart(
                title="Worst error of the best subset",
                metric="subset_error",
                x="candidates",
                x_label="random candidates for each weight",
                y_label="error",
                split="",
                log_y=True,
            ),
            Chart(
                title="A trained network rebuilt from random paths",
                metric="rebuilt_accuracy",
                x="candidates",
                x_label="random paths for each weight",
                y_label="share of test points",
            ),
            Chart(
                title="Frozen weights under a trained mask",
                metric="accuracy",
                x="width",
                x_label="width",
                y_label="share of test points",
                by=("arm", "density"),
                log_x=True,
            ),
        ),
    ),
)
