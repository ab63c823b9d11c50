"""Section of the capacity study."""

from __future__ import annotations

from nucleate.report.charts.chart import Chart, Section

SECTIONS = (
    Section(
        id="capacity",
        study="capacity",
        title="Few directions of many",
        caption="Test accuracy after training in an affine subspace of the weights, random or made of as many single "
        "weights, beside the whole network: a small share of the dimensions is enough.",
        charts=(
            Chart(
                title="Accuracy against the dimension",
                metric="accuracy",
                x="dimension",
                x_label="directions that are trained",
                y_label="share of test points",
                by=("arm",),
                log_x=True,
            ),
        ),
    ),
)
