"""Charts of the lazy study: a ladder of widths towards the kernel, the kernel's spectrum and its bound."""

from __future__ import annotations

from nucleate.report.charts.chart import Chart, Section


def _ladder(title: str, metric: str, unit: str, *, split: str = "test", log_y: bool = True) -> Chart:
    return Chart(
        title=title, metric=metric, x="width", x_label="width", y_label=unit, by=("recipe",), split=split, log_x=True,
        log_y=log_y,
    )  # fmt: skip


def _noise(title: str, metric: str, unit: str) -> Chart:
    return Chart(
        title=title, metric=metric, x="noise", x_label="share of wrong labels", y_label=unit, by=("recipe",)
    )  # fmt: skip


SECTIONS = (
    Section(
        id="lazy",
        study="lazy",
        title="Wide and shallow: the kernel regime",
        caption="As the hidden layer widens its weights and its own kernel move less, and what it learns comes to what "
        "its infinite-width kernel predicts at the same step; theory says like width^-1/2.",
        charts=(
            _ladder("Gap to the kernel's prediction", "gap", "root mean square"),
            _ladder("Drift of the network's kernel", "drift", "relative Frobenius norm"),
            _ladder("Movement of the first layer", "movement", "relative to its start", split=""),
            _ladder("Kernel distance, start to end", "kernel_distance", "1 - cosine"),
            _ladder("Kernel at the start, to infinite width", "start_gap", "relative Frobenius norm"),
            _ladder("Test error of the network", "error", "share of points", log_y=False),
            _ladder("Test error of the kernel at the same step", "kernel_error", "share of points", log_y=False),
            Chart(
                title="Spectrum of the exact kernel",
                metric="eigenvalue",
                x="rank",
                x_label="rank",
                y_label="eigenvalue",
                by=("recipe",),
                split="",
                log_x=True,
                log_y=True,
            ),
            _noise("The kernel's bound on the loss", "bound", "sqrt(2 y'K^-1 y / n)"),
            _noise("Test error of kernel regression", "kernel_error", "share of points"),
        ),
        optional=True,
    ),
)
