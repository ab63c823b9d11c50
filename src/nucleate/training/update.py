"""The optimizer's step of a stack: rows of parameters that share their rates move together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from nucleate.compact import native
from nucleate.compact.learn import Rule
from nucleate.machine.tuning import Tuning
from nucleate.spec import TrainSpec


class Update:
    """SGD or Adam, as `torch.optim` has them, by the package's own kernel where it serves: half the time of torch's.

    >>> rows, slot = torch.ones(1, 2), torch.zeros(1, 2)
    >>> update = Update(torch.float32, torch.device("cpu"), Tuning(threads=1))
    >>> update(rows, rows.clone(), [slot], torch.tensor(0.0), lr=0.5, step=1, spec=TrainSpec(weight_decay=0.0))
    >>> rows.tolist()
    [[0.5, 0.5]]
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, tuning: Tuning) -> None:
        fits = dtype == torch.float32 and device.type == "cpu" and tuning.fused
        self.kernel: Literal["native", "torch"] = "native" if fits and native.available() else "torch"
        self.fused = tuning.fused

    def __call__(
        self,
        rows: Tensor,
        gradients: Tensor,
        slots: Sequence[Tensor],
        clock: Tensor,
        *,
        lr: float,
        step: int,
        spec: TrainSpec,
    ) -> None:
        """Move the rows, in place.

        Args:
            rows, gradients: (R, parameters), contiguous.
            slots: what the optimizer keeps, each like the rows: the momentum, or both averages of Adam.
            clock: steps before this one, which torch's Adam counts on.
            lr: learning rate.
            step: this step, counted from 1.
            spec: the optimizer, its weight decay and momentum.
        """
        if self.kernel == "native":
            rule = Rule(optimizer=spec.optimizer, weight_decay=spec.weight_decay, momentum=spec.momentum)
            rates = torch.tensor(rule.rates(lr, step))
            learn = native.Learn(
                values=native.pointer(rows),
                gradient=native.pointer(gradients),
                first=native.pointer(slots[0]),
                second=native.pointer(slots[-1]),
                rates=native.pointer(rates),
                count=rows.numel(),
                adam=spec.optimizer == "adam",
            )
            native.run(native.Step(kind=native.UPDATE, learn=learn))
        elif spec.optimizer == "adam":
            adam(
                [rows], [gradients], [slots[0]], [slots[1]], [], [clock],
                fused=self.fused, foreach=False, amsgrad=False, beta1=0.9, beta2=0.999, lr=lr,
                weight_decay=spec.weight_decay, eps=1e-8, maximize=False,
            )  # fmt: skip
        else:
            sgd(
                [rows], [gradients], [slots[0]],
                fused=self.fused, foreach=False, weight_decay=spec.weight_decay, momentum=spec.momentum,
                lr=lr, dampening=0.0, nesterov=False, maximize=False,
            )  # fmt: skip


def stretches(keys: Sequence[tuple[float, TrainSpec]]) -> list[tuple[slice, float, TrainSpec]]:
    """Neighbours that one optimizer step serves: equal rate, momentum and weight decay.

    >>> [part for part, _, _ in stretches([(0.1, TrainSpec()), (0.1, TrainSpec()), (0.2, TrainSpec())])]
    [slice(0, 2, None), slice(2, 3, None)]
    """
    found: list[tuple[slice, float, TrainSpec]] = []
    for position, (lr, spec) in enumerate(keys):
        if found:
            before, rate, other = found[-1]
            if (lr, spec.momentum, spec.weight_decay) == (rate, other.momentum, other.weight_decay):
                found[-1] = slice(before.start, position + 1), rate, other
                continue
        found.append((slice(position, position + 1), lr, spec))
    return found
