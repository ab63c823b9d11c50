"""Pruning inside anyone's training loop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nucleate.probes.tap import unwrap
from nucleate.pruning.coverage import Coverage, Extra, coverage, parameters
from nucleate.pruning.criteria.given import Batches, Loss
from nucleate.pruning.densities import round_half_up
from nucleate.pruning.dynamic import Regrow, random_growth, regrown
from nucleate.pruning.masks import Masks
from nucleate.pruning.prune import decided
from nucleate.pruning.schedule import Schedule, one_shot
from nucleate.pruning.scores import Criterion, find_score


class Pruner:
    """Prunes by a schedule and keeps pruned weights at zero, in a training loop of your own.

        pruner = Pruner(model, optimizer, "magnitude", cubic(0.1, rounds=20, every=500))
        for x, y in loader:
            ...
            loss.backward()
            optimizer.step()
            pruner.step()

    After `step` every pruned weight is exactly zero, whatever the optimizer: it costs one multiplication in place.
    When weights are pruned, or grow back, the optimizer's state of them is set to zero. With clipping by norm,
    `mask_gradients` belongs before it. Mixed precision, gradient accumulation, `torch.compile` and
    `DistributedDataParallel` need nothing more; processes take the masks of rank 0. Model and optimizer stay what they
    were: parameter names, `state_dict`, copies and pickles are those of the dense model.

    Args:
        model: any module.
        optimizer: the one that trains it; its state is kept clean if given.
        method, batches, loss, scope, shape, layers, include, initial, seed, allow_empty: as `prune`.
        schedule: density at each step, or one density from the start.
        masks: start from these.
        regrow: exchange weights at constant count: `rigl(...)`, `set_(...)`.

    Raises:
        ValueError: for what `prune` refuses, as early as it can be known.

    >>> net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> optimizer = torch.optim.Adam(net.parameters(), weight_decay=0.1)
    >>> pruner = Pruner(net, optimizer, "magnitude", 0.2)
    >>> for _ in range(3):
    ...     net(torch.randn(4, 10)).square().sum().backward()
    ...     optimizer.step()
    ...     pruner.step()
    >>> int((net[0].weight != 0).sum()), pruner.masks.density
    (20, 0.2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        method: str | Criterion,
        schedule: float | Schedule,
        *,
        batches: Batches | None = None,
        loss: Loss | None = None,
        scope: str | Mapping[str, float | int] = "global",
        shape: str = "weight",
        layers: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None = None,
        include: Sequence[Extra] = (),
        masks: Mapping[str, Tensor] | None = None,
        initial: Mapping[str, Tensor] | None = None,
        regrow: Regrow | None = None,
        seed: int = 0,
        allow_empty: bool = False,
    ) -> None:
        find_score(method)
        self.model = model
        self.optimizer = optimizer
        self.method = method
        self.schedule = schedule if callable(schedule) else one_shot(schedule)
        self.coverage: Coverage = coverage(model, layers=layers, include=include)
        self.regrow = regrow
        self.seed = seed
        self.steps = 0
        """Optimizer steps seen."""
        self.events: list[dict[str, Any]] = []
        """Record of every pruning event, with its step."""
        self._options: dict[str, Any] = {
            "batches": batches,
            "loss": loss,
            "scope": scope,
            "shape": shape,
            "layers": layers,
            "include": include,
            "initial": initial,
            "seed": seed,
            "rounds": None,
            "allow_empty": allow_empty,
        }
        self._dense_gradients: dict[str, Tensor] = {}
        self.masks = Masks.dense(self._weights) if masks is None else Masks(masks)
        """What is left."""
        self._held: list[tuple[nn.Module, str, Tensor]] = []
        self._kept = self.masks.kept
        self._density: float | None = None
        if masks is not None:
            self._take(self.masks)
        self._prune_to(self.schedule(0))

    @torch.no_grad()
    def step(self) -> None:
        """Call after every optimizer step (after the scaler's, in mixed precision), before gradients are cleared."""
        self.steps += 1
        if self.regrow is not None and self.regrow.due(self.steps):
            self._exchange(self.regrow)
        self._prune_to(self.schedule(self.steps))
        for w, mask in self._masked():
            w.mul_(mask)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set gradients of pruned weights to zero: before clipping, where they would count in the norm.

        With this at every step the optimizer's state of pruned weights stays exactly zero too.
        """
        if self.regrow is not None and self.regrow.grow == "gradient" and self.regrow.due(self.steps + 1):
            self._dense_gradients = {n: w.grad.clone() for n, w in self._weights.items() if w.grad is not None}
        for w, mask in self._masked():
            if w.grad is not None:
                w.grad.mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the step, the masks and the events so far."""
        return {
            "steps": self.steps,
            "masks": dict(self.masks),
            "coupled": sorted(self.masks.coupled),
            "events": list(self.events),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; pruned weights are set to zero at once.

        Raises:
            ValueError: if the masks fit another model.
        """
        masks = Masks(state["masks"], coupled=frozenset(state["coupled"]))
        masks.apply(self.model)
        self.steps, self.events = int(state["steps"]), list(state["events"])
        self._take(masks)
        self._density = None

    def _prune_to(self, density: float) -> None:
        # Between events the schedule stands still: nothing is counted again.
        if density == self._density:
            return
        self._density = density
        if round_half_up(density * self.masks.count) >= self._kept:
            return
        done = decided(
            self.model,
            self.method,
            density,
            agree=lambda found: _of_rank_zero(self.model, found),
            masks=None if self._kept == self.masks.count else self.masks,
            **self._options,
        )
        self.events.append(done.record | {"step": self.steps})
        self._take(done.masks)
        self.masks.apply(self.model, self.optimizer)

    def _exchange(self, regrow: Regrow) -> None:
        if self._kept == self.masks.count:
            return
        if regrow.grow == "random":
            growth = random_growth(self.masks, self.seed, self.steps)
        else:
            growth = self._dense_gradients or {n: w.grad for n, w in self._weights.items() if w.grad is not None}
            missing = [name for name in self.masks if name not in growth and name not in self.masks.coupled]
            if missing:
                raise ValueError(f"growing by gradient needs that of {missing[0]}: call step() before zero_grad()")
        self._dense_gradients = {}
        for w, mask in self._masked():
            w.mul_(mask)
        new = regrown(self.masks, self._weights, growth, regrow.share(self.steps))
        if self.optimizer is not None:
            # What comes back had a state of its own, under the old mask; what goes loses it, under the new one.
            self.masks.apply_to_state(self.model, self.optimizer)
        self._take(_of_rank_zero(self.model, new))
        self.masks.apply(self.model, self.optimizer)

    def _take(self, masks: Masks) -> None:
        found = masks.find(self.model)
        self.masks = masks
        self._kept = masks.kept
        self._held = []
        # In the weight's own type the product takes half the time that it takes in uint8.
        root = unwrap(self.model)
        for name, w in found.items():
            module, _, own = name.rpartition(".")
            self._held.append((root.get_submodule(module), own, masks[name].to(w.device, w.dtype)))

    def _masked(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each weight and its mask. Weights are looked up anew: `load_state_dict(..., assign=True)` puts in others."""
        return ((getattr(module, own), mask) for module, own, mask in self._held)

    @property
    def _weights(self) -> dict[str, nn.Parameter]:
        own = dict(parameters(self.model))
        return {name: own[name] for name in self.coverage.layouts}


def _of_rank_zero(model: nn.Module, masks: Masks) -> Masks:
    """The same masks on every process: scores may come from data that differ."""
    shared = any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules())
    if not (shared and dist.is_available() and dist.is_initialized()):
        return masks
    for mask in masks.values():
        dist.broadcast(mask, src=0)
    return masks
