"""`nucleate prune --target`: method, shape and layer densities searched until a size, time, speed-up or loss is met."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from nucleate.compact.choice import Report
from nucleate.compact.files import save_sparse
from nucleate.pruning.coverage import coverage
from nucleate.pruning.masks import Masks
from nucleate.pruning.prune import prune
from nucleate.pruning.sensitivity import sensitivity
from nucleate.runs.sweep import Tick
from nucleate.studies.compare import criterion
from nucleate.studies.frontier import DENSITIES, Costs, Kind, Target, first_that, last_that, path
from nucleate.studies.timing import seconds, timed

if TYPE_CHECKING:
    from nucleate.studies.prune import Outcome, Search

PARTS = 8
"""What the progress bar counts of a candidate: the costs of its layers, their losses, and about six networks that
bisection tries."""
FLOOR = 1e-3
"""Loss in nats that counts as none when steps of layers are weighed against each other."""


class Towards:
    """The search of one target over methods and shapes."""

    def __init__(self, search: Search, target: Target) -> None:
        self.search, self.target = search, target
        self.spec, self.model, self.writer = search.spec, search.model, search.writer
        self.example = search.data.train_inputs[: self.spec.batch].to(self.spec.train.device)
        self.sign = 1.0 if search.higher else -1.0
        state = self.writer.restore()
        self.paths: dict[str, list[dict[str, float]]] = json.loads(state) if state else {}
        self.walked = self._stored()
        self.reached: dict[Kind, float] = {}
        """What was measured of the network that was chosen."""

    def run(self, tick: Tick) -> Outcome:
        """The network of the candidate that meets the target best; the model is left as it.

        Raises:
            ValueError: if no candidate meets it, with the closest that was reached.
        """
        self.reference = self.search.judge(*self.search.held_points())
        met: list[tuple[float, str, str, int]] = []
        for method in self.spec.methods:
            for shape in self.spec.shapes:
                step = self._bisect(method, shape, tick)
                # The dense network itself loses nothing: that is no answer to a target of loss.
                if step is None or (step == 0 and self.target.kind == "loss"):
                    continue
                if self.target.met(reached := self._reach(method, shape, step)):
                    # What the target does not ask for decides: the loss, or for a target of loss the time.
                    rank = reached["time"] if self.target.kind == "loss" else reached["loss"]
                    met.append((rank, method, shape, step))
        if not met:
            kind = self.target.kind
            best = (max if kind == "speedup" else min)((r[kind] for r in self.walked.values()), default=math.nan)
            raise ValueError(
                f"no method and shape reaches target {self.spec.target}: the closest has {kind} {best:.4g}; "
                "ask for less, allow other --methods and --shapes, or train on after pruning (--prune.epochs)"
            )
        _, method, shape, step = min(met)
        self.reached = self.walked[method, shape, step]
        return self._at(method, shape, step)

    def _bisect(self, method: str, shape: str, tick: Tick) -> int | None:
        key = f"{method} {shape}"
        left = iter([1] * PARTS)
        if key not in self.paths:
            costs = self._costs(shape)
            tick(next(left))
            self.paths[key] = path(costs, self._losses(method, shape), floor=FLOOR)
            tick(next(left))
            self.writer.checkpoint(json.dumps(self.paths).encode())
        steps = len(self.paths[key])

        def holds(step: int) -> bool:
            reached = self._reach(method, shape, step)
            tick(next(left, 0))
            return self.target.met(reached)

        found = last_that(holds, steps) if self.target.kind == "loss" else first_that(holds, steps)
        tick(sum(left))
        return found

    def _at(self, method: str, shape: str, step: int) -> Outcome:
        shares = self.paths[f"{method} {shape}"][step]
        counts = {n: self.model.get_parameter(n).numel() for n in shares}
        density = sum(shares[n] * counts[n] for n in shares) / sum(counts.values())
        return self.search.at(density, method=method, shape=shape, scope=shares)

    def _reach(self, method: str, shape: str, step: int) -> dict[Kind, float]:
        """Size, time, speed-up and loss of one point of a path, pruned, trained on and measured once."""
        key = (method, shape, step)
        if key not in self.walked:
            found = self._at(method, shape, step)
            fast, dense = seconds(self._measured(found.masks))
            reached: dict[Kind, float] = {
                "size": self._bytes(found),
                "time": fast,
                "speedup": dense / fast,
                "loss": self.sign * (self.reference - found.validation),
            }
            at = {"method": method, "shape": shape, "path": step, "tried": f"{method}, {shape}"}
            rows = [
                (self.spec.metric, "validation", found.validation),
                *((f"target_{kind}", "", value) for kind, value in reached.items()),
            ]
            self.writer.append([self.search.row(found.masks.density, s, m, v) | at for m, s, v in rows])
            self.writer.checkpoint(json.dumps(self.paths).encode())
            self.walked[key] = reached
        return self.walked[key]

    def _stored(self) -> dict[tuple[str, str, int], dict[Kind, float]]:
        found: dict[tuple[str, str, int], dict[Kind, float]] = {}
        for r in self.writer.records:
            if r["metric"].startswith("target_"):
                at = found.setdefault((r["method"], r["shape"], r["path"]), {})
                at[cast(Kind, r["metric"].removeprefix("target_"))] = r["value"]
        return found

    def _measured(self, masks: Masks | None) -> Report:
        return timed(self.model, self.example, masks, self.search.tuning)

    def _bytes(self, found: Outcome) -> float:
        """Of the file that the run would leave, its record with it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sparse.safetensors"
            return float(save_sparse(self.model, file, found.masks, record=found.record))

    def _costs(self, shape: str) -> Costs:
        """Bytes, or measured seconds, of each layer at each density."""
        self.model.load_state_dict(self.search.start)
        layers = self.spec.prune.layers or None
        names = list(coverage(self.model, layers=layers).layouts)
        if self.target.kind == "size":
            counts = {n: self.model.get_parameter(n).numel() for n in names}
            return {n: {1.0: 4.0 * c} | {d: c * (4 * d + 1 / 8) for d in DENSITIES} for n, c in counts.items()}
        found: dict[str, dict[float, float]] = {}
        for density in (1.0, *DENSITIES):
            self.model.load_state_dict(self.search.start)
            masks = None
            if density < 1:
                masks = prune(self.model, "magnitude", density, scope="layer", shape=shape, layers=layers).masks
            for layer in self._measured(masks).layers:
                if f"{layer.name}.weight" in names:
                    found.setdefault(f"{layer.name}.weight", {})[density] = min(layer.seconds.values())
        if not found:
            raise ValueError(f"no layer of {self.spec.model.name} can be timed on this data; take a target of size")
        # What was not timed keeps its weights: nobody knows what it would gain.
        return {n: found.get(n, {1.0: 0.0}) for n in names}

    def _losses(self, method: str, shape: str) -> Costs:
        """Training loss on validation points that each layer adds when it alone is pruned to each density."""
        self.model.load_state_dict(self.search.start)
        held = self.search.held_points()

        def loss(model: nn.Module) -> float:
            return self.search.mean_loss(*held)

        found = sensitivity(
            self.model,
            criterion(method),
            loss,
            densities=DENSITIES,
            batches=self.search.batches(),
            loss=self.search.loss,
            shape=shape,
            layers=self.spec.prune.layers or None,
            seed=self.spec.seed,
        )
        return {n: {d: value - by[1.0] for d, value in by.items()} for n, by in found.items()}
