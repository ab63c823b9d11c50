"""A bias run as text for the terminal."""

from __future__ import annotations

import numpy as np

from nucleate.runs import Run


def at_the_end(run: Run) -> str:
    """Each arm's measures at its last step: mean over seeds, smallest and largest."""
    found: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    for row in run.records:
        found.setdefault((row["arm"], row["metric"]), {}).setdefault(row["step"], {})[row["seed"]] = row["value"]
    lines = [f"{'arm':22s}{'measure':18s}{'step':>8s}{'mean':>12s}{'smallest':>12s}{'largest':>12s}"]
    for (arm, metric), steps in found.items():
        step = max(steps)
        values = list(steps[step].values())
        numbers = "".join(f"{v:12.4g}" for v in (np.mean(values), min(values), max(values)))
        lines.append(f"{arm:22s}{metric:18s}{step:8d}{numbers}")
    return "\n".join(lines)
