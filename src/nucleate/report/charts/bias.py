"""Charts of the bias study: where descent goes, step by step, in each of its problems."""

from __future__ import annotations

from nucleate.report.charts.chart import Chart, Section


def _steps(problem: str, title: str, metric: str, unit: str, *, log_y: bool = False, log_x: bool = True) -> Chart:
    return Chart(
        title=title, metric=metric, x="step", x_label="step", y_label=unit, by=("arm", "recipe"), split="train",
        log_x=log_x, log_y=log_y, where=(("problem", problem),),
    )  # fmt: skip


SECTIONS = (
    Section(
        id="bias",
        study="bias",
        title="What gradient descent prefers",
        caption="Many solutions fit; look for the one that descent ends at: least norm from zero, the largest margin, "
        "a sharpness of 2 / rate, low rank in deep factors.",
        charts=(
            _steps("min-norm", "Distance to the minimum-norm solution", "distance", "relative distance", log_y=True),
            _steps("min-norm", "Least squares: training loss", "loss", "mean squared error", log_y=True),
            _steps("max-margin", "Cosine to the maximum-margin separator", "cosine", "cosine"),
            _steps("max-margin", "Margin, as a share of the largest", "margin", "share"),
            _steps("edge", "Sharpness", "sharpness", "largest eigenvalue of the Hessian", log_x=False),
            _steps("edge", "Sharpness x rate / 2: stable below 1", "sharpness_ratio", "ratio", log_x=False),
            _steps("edge", "Edge: training loss", "loss", "half squared error", log_y=True, log_x=False),
            _steps("depth", "Error on unseen entries", "unseen_error", "relative"),
            _steps("depth", "Effective rank of the product", "effective_rank", "rank"),
        ),
        optional=True,
    ),
)
