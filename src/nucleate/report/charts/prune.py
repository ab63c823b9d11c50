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
                by=("tried",),
                split="validation",
                log_x=True,
                reverse_x=True,
            ),
        ),
    ),
    Section(
        id="prune-frontier",
        study="prune",
        title="The frontier that was walked",
        caption="Each point is a network that was pruned, trained on and measured on the way to the target: how "
        "much of the measure it lost on validation points, against what it gained.",
        optional=True,
        charts=tuple(
            Chart(
                title=f"Loss against {name}",
                metric="target_loss",
                x="path",
                along=f"target_{kind}",
                x_label=label,
                y_label="loss of the measure",
                by=("tried",),
                split="",
                log_x=True,
                reverse_x=kind != "speedup",
            )
            for name, kind, label in (
                ("time", "time", "seconds a batch, fastest form"),
                ("speed-up", "speedup", "times faster than the best dense form"),
                ("size", "size", "bytes of the sparse file"),
            )
        ),
    ),
)
