"""Sections of the tickets study: the ladder against its controls, learning curves by level, what a ticket is."""

from __future__ import annotations

from typing import Any

from nucleate.report.charts.chart import Chart, Section


def _ladder(title: str, metric: str, y_label: str, **fields: Any) -> Chart:
    return Chart(
        title=title,
        metric=metric,
        x="density",
        x_label="share of weights remaining",
        y_label=y_label,
        log_x=True,
        reverse_x=True,
        **fields,
    )


SECTIONS = (
    Section(
        id="tickets",
        study="tickets",
        title="Tickets and their controls",
        caption="A winning ticket stays at the dense network's accuracy and reaches its smallest validation loss "
        "earlier, where the same mask with fresh weights, or a random mask of the same layer ratios, falls behind.",
        charts=(
            _ladder(
                "Test error at the validation minimum", "stop_error", "share of test points", by=("arm",), log_y=True
            ),
            _ladder(
                "Step of the smallest validation loss", "stop_step", "step", by=("arm",), split="validation", log_y=True
            ),
            _ladder("Accuracy at the end", "end_accuracy", "share of test points", by=("arm",)),
            _ladder(
                "Smallest validation loss", "stop_loss", "cross-entropy", by=("arm",), split="validation", log_y=True
            ),
        ),
    ),
    Section(
        id="tickets-critical",
        study="tickets",
        title="Pruning before training: when a layer is empty",
        caption="The largest density at which a score of the untrained network leaves a layer without weights: the "
        "further down, the safer.",
        optional=True,
        charts=(
            Chart(
                title="Density at which the first layer is empty",
                metric="critical_density",
                x="arm",
                x_label="score of the untrained network",
                y_label="share of weights remaining",
                split="",
                log_y=True,
            ),
        ),
    ),
    Section(
        id="tickets-curves",
        study="tickets",
        title="Learning curves by level",
        caption="Validation curves of each arm and level: look for tickets that learn faster than the dense network, "
        "level 0.",
        charts=tuple(
            Chart(
                title=f"{title}, {name}",
                metric=metric,
                x="step",
                x_label="step",
                y_label=y_label,
                by=("level",),
                split="validation",
                log_y=log_y,
                where=(("arm", arm),),
            )
            for title, metric, y_label, log_y in (
                ("Validation loss", "loss", "cross-entropy", True),
                ("Validation accuracy", "accuracy", "share right", False),
            )
            for arm, name in (("ticket", "tickets"), ("reinit", "fresh weights"))
        ),
    ),
    Section(
        id="tickets-portrait",
        study="tickets",
        title="What a ticket is",
        caption="Where its weights lie, how much of the mask other seeds share, what training does to signs and sizes, "
        "and which inputs survive.",
        charts=(
            _ladder(
                "Layer densities", "layer_density", "share of the layer's weights", by=("part",), split="", log_y=True
            ),
            _ladder("Signs that training keeps", "sign_agreement", "share of kept weights", by=("part",), split=""),
            _ladder(
                "Overlap of masks between seeds",
                "overlap",
                "Jaccard overlap",
                split="",
                beside=("overlap_chance", "by chance"),
                optional=True,
            ),
            _ladder("Distance travelled", "distance", "|w - w0| / |w0|", split=""),
            _ladder("Weights on live paths", "live_share", "share of kept weights", split=""),
            *(
                Chart(
                    title=title,
                    metric="histogram",
                    x="position",
                    x_label="weight in units of its layer's initial deviation",
                    y_label="density",
                    by=("level",),
                    split="",
                    where=(("part", moment),),
                )
                for title, moment in (
                    ("Kept weights as they were drawn", "start"),
                    ("Kept weights after training", "end"),
                )
            ),
            Chart(
                title="Surviving inputs at the last level",
                metric="input_weights",
                x="column",
                x_label="column",
                y="row",
                y_label="row from the bottom",
                split="",
            ),
        ),
    ),
    Section(
        id="tickets-collapse",
        study="tickets",
        title="Collapse along the ladder",
        caption="Neural collapse of each level, at its end, on training points: a winning ticket should collapse "
        "as its dense parent does.",
        charts=tuple(
            _ladder(title, metric, "0 is full collapse", split="train", layer="penultimate", log_y=True)
            for title, metric in (
                ("NC1", "nc1"),
                ("NC2, equal angles", "nc2_equiangle"),
                ("NC3", "nc3"),
                ("NC4", "nc4"),
            )
        ),
    ),
)
