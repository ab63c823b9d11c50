"""What each weight is worth: one signature for every criterion."""

from __future__ import annotations

import difflib
import math
import random as python_random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.probes.tap import unwrap
from nucleate.pruning.coverage import Coverage, Extra, coverage, parameters
from nucleate.pruning.criteria import activations, curvature, filters, gradients, synflow, weights
from nucleate.pruning.criteria.given import Batches, Given, Loss
from nucleate.pruning.layout import Layout, Made
from nucleate.pruning.threshold import extremes, finite

Criterion = Callable[[Given], Mapping[str, Tensor]]
"""A score: tensors in the parameters' shapes (or one value an output), larger is worth more."""

SCORES: dict[str, Criterion] = {
    "random": weights.random,
    "magnitude": weights.magnitude,
    "large_final": weights.magnitude,
    "lamp": weights.lamp,
    "erk": weights.erk,
    "large_init": weights.large_init,
    "small_init": weights.small_init,
    "small_final": weights.small_final,
    "magnitude_increase": weights.magnitude_increase,
    "distance": weights.distance,
    "large_init_large_final": weights.large_init_large_final,
    "small_init_small_final": weights.small_init_small_final,
    "large_final_same_sign": weights.large_final_same_sign,
    "large_final_diff_sign": weights.large_final_diff_sign,
    "magnitude_increase_same_sign": weights.magnitude_increase_same_sign,
    "magnitude_increase_diff_sign": weights.magnitude_increase_diff_sign,
    "snip": gradients.snip,
    "snip_batches": gradients.snip_batches,
    "grasp": gradients.grasp,
    "grasp_batches": gradients.grasp_batches,
    "grasp_abs": gradients.grasp_abs,
    "taylor": gradients.taylor,
    "taylor_abs": gradients.taylor_abs,
    "taylor_unit": gradients.taylor_unit,
    "movement": gradients.movement,
    "fisher": curvature.fisher,
    "hutchinson": curvature.hutchinson,
    "wanda": activations.wanda,
    "apoz": activations.apoz,
    "mean_activation": activations.mean_activation,
    "l2_activation": activations.l2_activation,
    "synflow": synflow.synflow,
    "path_counts": synflow.path_counts,
    "fpgm": filters.fpgm,
    "bn_scale": filters.bn_scale,
    "expected_bn": filters.expected_bn,
}
"""Every score that has a name."""


class Scores(dict[str, Tensor]):
    """Scores by parameter name; larger is worth more. A tensor has its parameter's shape, or one value an output."""

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        *,
        layout: dict[str, Layout],
        coverage: Coverage | None = None,
        masks: Mapping[str, Tensor] | None = None,
        record: Mapping[str, Any] | None = None,
        by_size: bool = False,
        made: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(scores)
        self.layout = layout
        """What the axes of each tensor mean."""
        self.coverage = coverage
        """What was prunable and what was not."""
        self.masks = masks
        """What earlier rounds left: everything else is out of the ranking."""
        self.record = dict(record or {})
        """Method, examples, mode and precision."""
        self.by_size = by_size
        """Whether |x| of the tensors is the score: spares a copy of the model."""
        self._made = made

    @property
    def made(self) -> Mapping[str, Tensor]:
        """The scores themselves; where the tensors are the weights, made one at a time, when they are read."""
        if self._made is not None:
            return self._made
        return Made(self, lambda name: self[name].abs()) if self.by_size else self


def scores(
    model: nn.Module,
    method: str | Criterion,
    batches: Batches | None = None,
    loss: Loss | None = None,
    *,
    layers: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None = None,
    include: Sequence[Extra] = (),
    masks: Mapping[str, Tensor] | None = None,
    initial: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    lazy: bool = False,
) -> Scores:
    """Score of every prunable weight; larger is worth more.

    The model comes out as it went in: weights, buffers, gradients, modes and every random generator bit for bit.

    Args:
        model: any module; pruned weights, if any, are zero in it.
        method: a name in `SCORES`, or a function of a `Given` that returns a tensor by parameter name.
        batches: pairs (inputs, targets), for methods that need data.
        loss: (output, targets) -> mean loss; cross-entropy if none.
        layers, include: what is prunable, see `coverage`.
        masks: what earlier rounds left; pruned entries stay out of the ranking.
        initial: weights at initialisation by name, for methods that need them.
        seed: for methods that draw.
        lazy: let "magnitude" and "wanda" hold the weights themselves and make the scores of one layer at a time: no
            copy of the model, but its weights must not change before the scores are used.

    Raises:
        ValueError: for an unknown method (with the nearest names), missing data, weights or scores that are not
            finite, or whatever `coverage` refuses.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -3.0], [0.5, 2.0]]))
    >>> scores(net, "magnitude")["0.weight"].tolist()
    [[1.0, 3.0], [0.5, 2.0]]
    >>> scores(net, lambda given: {name: -w for name, w in given.weights.items()})["0.weight"].tolist()
    [[-1.0, 3.0], [-0.5, -2.0]]
    """
    criterion, name = find_score(method)
    covered = coverage(model, layers=layers, include=include)
    own = dict(parameters(model))
    held = {n: own[n] for n in covered.layouts}
    by_size = lazy and criterion is weights.magnitude
    for n, w in held.items():
        # Weights that are the scores themselves are looked at below.
        if not by_size and not finite(w.detach()):
            raise ValueError(f"{n} holds NaN or infinity: there is nothing to rank")
    given = Given(
        unwrap(model),
        held,
        dict(covered.layouts),
        batches,
        loss or gradients.cross_entropy,
        initial,
        masks,
        seed,
    )
    if by_size:
        criterion = _as_they_are
    with untouched(given.model, weights=not isinstance(method, str)), torch.enable_grad():
        # Dropout and shuffled loaders draw from the global generator, which is put back.
        torch.manual_seed(seed)
        raw = criterion(given)
        _check(raw, given, name)
    made = raw if lazy and isinstance(raw, Made) else None
    return Scores(
        {n: (raw if made is None else held)[n].detach() for n in raw},
        layout={n: given.layouts[n] for n in raw},
        coverage=covered,
        masks=masks,
        record={"method": name, "seed": seed} | given.used,
        by_size=by_size,
        made=made,
    )


def _as_they_are(given: Given) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in given.weights.items()}


def find_score(method: str | Criterion) -> tuple[Criterion, str]:
    """The function of a name or of itself, and its name.

    Raises:
        ValueError: for an unknown name, with the nearest.
    """
    if not isinstance(method, str):
        return method, getattr(method, "__name__", type(method).__name__)
    if method not in SCORES:
        near = difflib.get_close_matches(method, SCORES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(SCORES))}"
        raise ValueError(f"no score is named {method!r}; {hint}")
    return SCORES[method], method


@contextmanager
def untouched(model: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Whatever happens inside: buffers, gradients, `requires_grad`, modes and random generators are put back.

    Weights too if asked for, at the price of a copy; no score that has a name writes to them.
    """
    modes = {m: m.training for m in model.modules()}
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    copies = [(p, p.detach().clone()) for p in model.parameters()] if weights else []
    buffers = [
        (m._buffers, name, b, b.detach().clone())
        for m in model.modules()
        for name, b in m._buffers.items()
        if b is not None
    ]
    states = python_random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            for p, _, _ in flags:
                p.grad = None
            yield
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        with torch.no_grad():
            for p, before in copies:
                p.copy_(before)
            for home, name, b, before in buffers:
                home[name] = b
                b.copy_(before)
        for p, wanted, grad in flags:
            p.requires_grad_(wanted)
            p.grad = grad
        for m, was in modes.items():
            m.training = was


def _check(raw: Mapping[str, Tensor], given: Given, method: str) -> None:
    """Refuse all but one finite tensor a prunable parameter, in its shape or one value an output."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{method} must give a tensor for each prunable parameter, not a {type(raw).__name__}")
    unknown = [n for n in raw if n not in given.weights]
    if unknown or not raw:
        what = f"scores {unknown[0]!r}, which is not prunable" if unknown else "scores nothing"
        raise ValueError(f"{method} {what}; prunable: {', '.join(list(given.weights)[:5])}")
    for n, s in raw.items():
        layout = given.layouts[n]
        if not isinstance(s, Tensor):
            raise ValueError(f"{method} scores {n} with a {type(s).__name__}, not a tensor")
        s = s.detach()
        if s.shape not in (given.weights[n].shape, (layout.outputs,)):
            raise ValueError(f"{method} scores {n} with shape {tuple(s.shape)}, not {layout.shape}")
        live = given.masks.get(n) if given.masks is not None and s.shape == layout.shape else None
        if not s.numel():
            raise ValueError(f"{n} has no weights, its shape is {layout.shape}: leave its layer out")
        low, high = extremes(s if live is None or not bool(live.any()) else s * live)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{method}: the score of {n} holds NaN or infinity")
        if low == high == 0 and (live is None or bool(live.any())):
            raise ValueError(f"{method}: every score of {n} is zero: the layer is dead, or nothing depends on it")
