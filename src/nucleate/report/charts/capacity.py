"""Section of the capacity study."""

from __future__ import annotations

from nucleate.report.charts.chart import Chart, Section

SECTIONS = (
    Section(
        id="capacity-parents",
        study="capacity",
        title="Why use a large network",
        caption="Tickets of one number of weights, cut from parents of growing width, beside the dense network of as "
        "many weights: trained for equally many steps, and for the compute of the whole ladder (longer).",
        optional=True,
        charts=(
            Chart(
                title="Accuracy against the parent's width",
                metric="accuracy",
                x="width",
                x_label="width of the parent",
                y_label="share of test points",
                by=("arm",),
                log_x=True,
            ),
        ),
    ),
    Section(
        id="capacity",
        study="capacity",
        title="Few directions of many",
        caption="Test accuracy after training in an affine subspace of the weights, random or made of as many single "
        "weights, beside the whole network: a small share of the dimensions is enough.",
        optional=True,
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
