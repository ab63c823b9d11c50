"""Charts of the descent study: error, fit, norm and agreement along width and samples, and heat maps."""

from __future__ import annotations

from typing import Any

from nucleate.report.charts.chart import Chart, Section

ANTIDOTES = ("recipe", "antidote")
WHOLE = (("density", ""),)
"""Rows of runs that prune nothing."""
TICKETS = (("arm", "ticket"),)


def _along(x: str, label: str, more: str) -> tuple[Chart, ...]:
    def chart(
        title: str, metric: str, unit: str, *, split: str = "test", layer: str = "", log_y: bool = False
    ) -> Chart:
        return Chart(
            title=f"{title} along {label}",
            metric=metric,
            x=x,
            x_label=label,
            y_label=unit,
            by=(*ANTIDOTES, more, "noise"),
            split=split,
            layer=layer,
            log_x=True,
            log_y=log_y,
            mark="threshold" if x == "width" else "",
            where=WHOLE,
        )

    share = "share of points"
    return (
        chart("Test error", "error", share),
        chart("Training error, labels as given", "error", share, split="train"),
        chart("Test loss", "loss", "loss", log_y=True),
        chart("Wrong labels memorised", "memorised", "share of wrong labels", split="train"),
        chart("Wrong labels seen through", "recovered", "share of wrong labels", split="train"),
        chart("Norm of the weights", "norm", "Euclidean norm", split="", log_y=True),
        chart("Distance from the start", "distance", "Euclidean norm", split=""),
        chart("Churn between seeds", "churn", share),
        chart("Predictions moved by replacing one point", "replace_one", share),
        chart("Variance over seeds", "variance", "squared output", log_y=True),
        chart("Squared bias, corrected", "bias_squared", "squared output"),
        chart(
            "NC1 of the last hidden layer", "nc1", "within / between", split="train", layer="penultimate", log_y=True
        ),
    )


def _map(
    title: str, y: str, y_label: str, metric: str, split: str, where: tuple[tuple[str, Any], ...] = WHOLE
) -> Chart:
    return Chart(
        title=title,
        metric=metric,
        x="width",
        y=y,
        x_label="width",
        y_label=y_label,
        split=split,
        where=(("antidote", "none"), *where),
    )


def _density(title: str, metric: str, unit: str, split: str = "test", *, layer: str = "", log_y: bool = False) -> Chart:
    return Chart(
        title=title, metric=metric, x="density", x_label="share of weights remaining", y_label=unit, split=split,
        layer=layer, by=(*ANTIDOTES, "arm", "width", "samples", "noise"), log_x=True, log_y=log_y, reverse_x=True,
        mark="phase_end",
    )  # fmt: skip


def _noise(title: str, metric: str, split: str, *, layer: str = "") -> Chart:
    return Chart(
        title=title, metric=metric, x="noise", x_label="share of wrong labels", y_label=title, split=split, layer=layer,
        by=(*ANTIDOTES, "width", "samples"), where=WHOLE,
    )  # fmt: skip


_NOISE = (
    _noise("Test error", "error", "test"),
    _noise("Training error, labels as given", "error", "train"),
    _noise("Wrong labels memorised", "memorised", "train"),
    _noise("Norm of the weights", "norm", ""),
    _noise("NC1 of the last hidden layer", "nc1", "train", layer="penultimate"),
)

SECTIONS = (
    Section(
        id="descent",
        study="descent",
        title="Double descent along width",
        caption="Test error falls, peaks where the model can just fit its points (dotted line), and falls again; look "
        "at the norm and the churn there, and at what a ridge, weight decay or early stopping leaves of the peak.",
        optional=True,
        charts=_along("width", "width", "samples"),
    ),
    Section(
        id="descent-samples",
        study="descent",
        title="Descent along samples",
        caption="The same model on more and more points: where n passes the model's size, more data can hurt.",
        optional=True,
        charts=(
            *_along("samples", "training points", "width"),
            Chart(
                title="Effective model complexity",
                metric="effective_complexity",
                x="width",
                x_label="width",
                y_label="largest sample fitted",
                by=("recipe", "noise"),
                split="train",
                log_x=True,
                log_y=True,
            ),
        ),
    ),
    Section(
        id="descent-sparsity",
        study="descent",
        title="Double descent along sparsity",
        caption="One wide network pruned further and further, to the right. With wrong labels: light, the error stays; "
        "critical, it rises while the wrong labels are still memorised; sweet, it falls below the whole network's as "
        "they no longer fit; collapsed, nothing is left. Dotted: where each of the first three ends for the ticket. "
        "Random masks and fresh weights in the same masks show what the choice of weights and their start is worth.",
        optional=True,
        charts=(
            _density("Test error", "error", "share of points"),
            _density("Wrong labels memorised", "memorised", "share of wrong labels", "train"),
            _density("Training error, labels as given", "error", "share of points", "train"),
            _density("Accuracy under PGD", "pgd_accuracy", "share of points"),
            _density("Distance from the start", "distance", "Euclidean norm", ""),
            _density("Churn between seeds", "churn", "share of points"),
            _density(
                "NC1 of the last hidden layer",
                "nc1",
                "within / between",
                "train",
                layer="penultimate",
                log_y=True,
            ),
        ),
    ),
    Section(
        id="descent-noise",
        study="descent",
        title="Wrong labels: what is fitted, what is learned",
        caption="A wide network can fit any labels; look for how little of the test error that costs while few "
        "labels are wrong.",
        optional=True,
        charts=_NOISE,
    ),
    Section(
        id="memorise",
        study="memorise",
        title="Fitting labels that are wrong",
        caption="As more labels are drawn at random the network still fits them all, in more epochs and with larger "
        "weights, while the held-out error grows towards chance.",
        optional=True,
        charts=(
            *_NOISE,
            _noise("Epochs to fit all labels", "fit_epoch", "train"),
            _noise("Effective depth", "effective_depth", "train"),
            Chart(
                title="Training error over epochs",
                metric="error",
                x="epoch",
                x_label="epoch",
                y_label="share of points",
                by=("noise", "recipe"),
                split="train",
            ),
        ),
    ),
    Section(
        id="descent-maps",
        study="descent",
        title="Two axes at once",
        caption="Colour is a measure at a width and a second size: the threshold is a ridge that crosses the map.",
        optional=True,
        charts=(
            _map("Test error, width x epochs", "epoch", "epoch", "error", "test"),
            _map("Training error, width x epochs", "epoch", "epoch", "error", "train"),
            _map("Test error, width x samples", "samples", "training points", "error", "test"),
            _map("Test error, width x density", "density", "share of weights remaining", "error", "test", TICKETS),
            _map("Test error, width x label noise", "noise", "share of wrong labels", "error", "test"),
            _map("Wrong labels memorised, width x label noise", "noise", "share of wrong labels", "memorised", "train"),
        ),
    ),
)
