"""How fast a pruned network gets, beside the best dense form of it."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from nucleate.compact.choice import Report
from nucleate.compact.choose import accelerate
from nucleate.machine.tuning import Tuning, tuned
from nucleate.pruning.masks import Masks


def timed(model: nn.Module, example: Tensor, masks: Masks | None, tuning: Tuning) -> Report:
    """What `nucleate.accelerate` measured, on the threads of a tuning; the model is left as it was."""
    with tuned(tuning):
        fast = accelerate(model, example, masks=masks)
    return cast(Report, fast.report)


def seconds(report: Report) -> tuple[float, float]:
    """Of one batch: in the fastest form, and in the best dense one, measured in turns with it."""
    dense = [s for name, s in report.seconds.items() if name.startswith(("as it was", "dense"))]
    return report.seconds[report.chosen], min(dense)
