"""Section of the prune-stability study."""

from __future__ import annotations

from typing import Any

from nucleate.report.charts.chart import Chart, Section


def _along_events(title: str, metric: str, y_label: str, **fields: Any) -> Chart:
    return Chart(
        title=title,
        metric=metric,
        x="events",
        x_label="events over which it is spread",
        y_label=y_label,
        **fields,
    )


PRUNED: dict[str, Any] = {"by": ("target", "method", "shape"), "where": (("kind", "pruned"),)}
RANDOM: dict[str, Any] = {"by": ("kind", "shape"), "where": (("target", "random"),)}

SECTIONS = (
    Section(
        id="prune-stability",
        study="prune_stability",
        title="Instability and generalisation",
        caption="Accuracy that pruning takes away at its events, and test accuracy at the end, by what is pruned; and "
        "the same for random weights that go, or are only set to zero or moved and train on.",
        charts=(
            _along_events("Pruned: mean drop at an event", "instability", "share", split="validation", **PRUNED),
            _along_events("Pruned: test accuracy at the end", "accuracy", "share of test points", **PRUNED),
            _along_events("Controls: mean drop at an event", "instability", "share", split="validation", **RANDOM),
            _along_events("Controls: test accuracy at the end", "accuracy", "share of test points", **RANDOM),
            Chart(
                title="Rank correlation",
                metric="rank_correlation",
                x="over",
                x_label="arms that differ in",
                y_label="of drop and final accuracy",
                optional=True,
            ),
        ),
    ),
)
