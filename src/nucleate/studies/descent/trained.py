"""Networks of many widths, noises, decays and densities, trained side by side and measured on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nucleate.data.sources import generator
from nucleate.geometry.collapse import collapse
from nucleate.geometry.depth import effective_depth
from nucleate.machine.tuning import Tuning
from nucleate.models import build
from nucleate.probes.landscape import (
    Hessian,
    frobenius_norms,
    margins,
    path_norm,
    perturbation_sigma,
    spectral_norms,
)
from nucleate.probes.robustness import pgd
from nucleate.probes.tap import tap
from nucleate.pruning.masks import Masks
from nucleate.runs import Record
from nucleate.spec import DescentSpec
from nucleate.studies.collapse import measured_epochs
from nucleate.studies.descent.closed import NONE, cell_name
from nucleate.studies.descent.sparse import REINIT, TICKET, masks_at
from nucleate.studies.fits import Value, agreement, finite, fit_values
from nucleate.studies.lockstep import Lockstep
from nucleate.studies.points import Points
from nucleate.training import Replica

STACK_BYTES = 12 << 20
"""Weights, gradients and moments of a stack, 16 bytes a parameter, stay within what a core's cache share holds."""

EARLY = "early stopping"
DISTILLED = "distillation"
LANDSCAPE_POINTS = 500
"""Training points on which the landscape is measured."""
ATTACKED_POINTS = 500
"""Test points on which networks are attacked."""
NO_CLASS = 255
"""Predicted by a network that diverged."""
DEPTH_ERROR = 0.01
"""Nearest-centre training error at which a hidden layer counts as collapsed (Galanti 2022)."""
COLLAPSE = ("nc1", "nc2_equiangle", "nc3", "nc4")


@dataclass(frozen=True)
class Cell:
    """All seeds of one network."""

    width: int
    samples: int
    noise: float
    decay: float
    density: float = 1.0
    arm: str = TICKET
    """ticket, of which the whole network is the first, or a control of it."""
    distilled: bool = False
    """Whether it learns the widest network's outputs."""


def weight_name(cell: Cell, seed: int, parameter: str) -> str:
    """Key of a parameter of one network, the same at all densities.

    >>> weight_name(Cell(8, 100, 0.2, 0.0, 0.1, "ticket"), 3, "output.weight")
    'width 8, samples 100, noise 0.2, decay 0, seed 3, output.weight'
    """
    where = f"width {cell.width}, samples {cell.samples}, noise {cell.noise:g}, decay {cell.decay:g}"
    return f"{where}, seed {seed}, {parameter}"


def epochs_at(spec: DescentSpec, samples: int, largest: int) -> int:
    """Epochs on a sample, so that every sample size takes as many steps as the largest.

    >>> epochs_at(DescentSpec(), 100, 400), epochs_at(DescentSpec(), 400, 400)
    (400, 100)
    """
    size = spec.train.batch_size
    return max(1, round(spec.train.epochs * math.ceil(largest / size) / math.ceil(samples / size)))


def stacks(spec: DescentSpec, cells: Sequence[Cell], parameters: dict[int, int]) -> list[list[Cell]]:
    """Cells that are trained together: one sample size, widths within a factor of two, no more than fits the cache."""
    found: list[list[Cell]] = []
    for cell in sorted(cells, key=lambda c: (c.samples, c.width, c.noise, c.decay)):
        last = found[-1] if found else []
        near = last and cell.samples == last[0].samples and cell.width <= max(2 * last[0].width, 24)
        stackable = spec.model.name == "mlp"
        room = 16 * parameters[cell.width] * len(spec.seeds) * (len(last) + 1) <= STACK_BYTES
        if near and stackable and room:
            last.append(cell)
        else:
            found.append([cell])
    return found


class Trained:
    """One stack of cells in training; iterate for the records of each measured epoch.

    `before` has, by `weight_name`, the weights of each member's network at the density before, and of its teacher.
    """

    def __init__(
        self,
        spec: DescentSpec,
        points: Points,
        cells: Sequence[Cell],
        tuning: Tuning,
        before: Mapping[str, Any],
        *,
        largest: int,
    ) -> None:
        self.spec, self.points, self.cells = spec, points, list(cells)
        self.samples = cells[0].samples
        epochs = epochs_at(spec, self.samples, largest)
        self.grid = measured_epochs(epochs, max(2, spec.points))
        self.epochs = epochs
        data = points.data
        self.members = [(cell, seed) for cell in self.cells for seed in spec.seeds]
        replicas = []
        self.given: list[Tensor] = []
        self.held: list[Tensor] = []
        self.starts: list[nn.Module] = []
        self.masks: list[Masks | None] = []
        for cell, seed in self.members:
            given, held = points.labels(seed, cell.noise)
            self.given.append(given[: self.samples])
            self.held.append(held)
            fresh = generator(seed, f"reinit {cell.density:g}") if cell.arm == REINIT else Generator().manual_seed(seed)
            model = build(replace(spec.model, width=cell.width), data.input_shape, data.num_classes, generator=fresh)
            masks = None
            if cell.density < 1:
                trained = {k: torch.as_tensor(before[weight_name(cell, seed, k)]) for k, _ in model.named_parameters()}
                if not all(map(finite, trained.values())):
                    # What diverged has no largest weights: its tickets are lost with it.
                    trained = {k: p.data.clone() for k, p in model.named_parameters()}
                    model.load_state_dict({k: torch.full_like(w, math.nan) for k, w in trained.items()}, strict=False)
                masks = masks_at(model, cell.density, cell.arm, trained, seed)
                masks.apply(model)
            targets = self._taught(cell, seed, before) if cell.distilled else self.given[-1]
            self.masks.append(masks)
            self.starts.append(copy.deepcopy(model))
            train = replace(spec.train, epochs=epochs, weight_decay=cell.decay)
            replicas.append(Replica(model=model, labels=targets, spec=train, seed=seed, masks=masks))
        self.stack = Lockstep(replicas, points.inputs[: self.samples], data.num_classes, tuning)
        self.best: list[Any] = [None] * len(self.members)
        """Validation error and rows at the best epoch so far, of each member."""
        self.attacked: list[Tensor] = []
        """Classes that each member gives the attacked test points at the end."""

    def _taught(self, cell: Cell, seed: int, before: Mapping[str, Any]) -> Tensor:
        """(N, C) softmax(z / temperature) of the teacher's outputs z on the training points."""
        cell = replace(cell, width=max(self.spec.widths))
        data = self.points.data
        teacher = build(
            replace(self.spec.model, width=cell.width), data.input_shape, data.num_classes, generator=Generator()
        )
        teacher.load_state_dict({k: torch.as_tensor(before[weight_name(cell, seed, k)]) for k in teacher.state_dict()})
        with torch.no_grad():
            outputs: Tensor = teacher.eval()(self.points.inputs[: self.samples])
        return (outputs / self.spec.distil).softmax(1)

    @property
    def replicas(self) -> int:
        """Trainings in the stack."""
        return len(self.members)

    def __iter__(self) -> Iterator[tuple[int, list[Record]]]:
        """Epoch and its records, none where nothing was due; the last one has what only the end tells."""
        for epoch in self.stack:
            rows: list[Record] = []
            if epoch.number in self.grid:
                rows = self._measure(epoch.number, epoch.step, last=epoch.number == self.epochs)
            yield epoch.number, rows
        if self.stack.epoch < self.epochs:
            # All diverged.
            yield self.epochs, self._measure(self.epochs, self.stack.step, last=True)

    def state(self, **notes: Any) -> bytes:
        """Everything that the next epoch depends on."""
        return self.stack.state(best=self.best, **notes)

    def load(self, content: bytes) -> None:
        """Go on from a state."""
        self.best = self.stack.load(content)["best"]

    def _measure(self, epoch: int, step: int, *, last: bool) -> list[Record]:
        data = self.points.data
        train, test = (self.stack.logits(x).cpu() for x in (self.points.inputs[: self.samples], data.test_inputs))
        held = self.stack.logits(self.points.held_inputs).cpu() if len(self.points.held_inputs) else None
        rows: list[Record] = []
        for i, (cell, seed) in enumerate(self.members):
            values = fit_values(
                train[i], self.given[i], self.points.clean[: self.samples], test[i], data.test_labels, squared=False
            )
            own = self._rows(cell, seed, epoch, step, [*values, *self._weights(i)])
            rows += own
            if held is not None:
                error = float((held[i].argmax(1) != self.held[i]).double().mean()) if finite(held[i]) else math.nan
                rows += self._rows(cell, seed, epoch, step, [("validation", "error", error)])
                if self.best[i] is None or error < self.best[i][0]:
                    self.best[i] = [error, [r | {"antidote": EARLY} for r in own]]
                if last and self._antidote(cell) == NONE:
                    rows += self.best[i][1]
            if last and not finite(train[i]):
                if self.spec.epsilon:
                    self.attacked.append(torch.full_like(data.test_labels[:ATTACKED_POINTS], NO_CLASS))
            elif last:
                rows += self._collapse(i, cell, seed, epoch, step)
        size = len(self.spec.seeds)
        for j, cell in enumerate(self.cells):
            own_test = test[j * size : (j + 1) * size]
            rows += self._rows(cell, None, epoch, step, agreement(own_test, data.test_labels, squared=False))
        return rows

    def _rows(self, cell: Cell, seed: int | None, epoch: int, step: int, values: list[Value]) -> list[Record]:
        first = self.cells.index(cell) * len(self.spec.seeds)
        masks = self.masks[first]
        gone = masks.count - masks.kept if masks is not None else 0
        where = {
            "width": cell.width,
            "samples": cell.samples,
            "noise": cell.noise,
            "antidote": self._antidote(cell),
            "parameters": sum(p.numel() for p in self.starts[first].parameters()) - gone,
        }
        if self.spec.densities:
            where |= {"density": cell.density, "arm": cell.arm}
        base = {"study": self.spec.study, "seed": seed, "step": step, "epoch": epoch, "layer": ""}
        return [base | {"split": split, "metric": m, "value": v} | where for split, m, v in values]

    def predictions(self) -> dict[str, Any]:
        """Classes (seeds, N) that the networks give the test points now, by `cell_name`, and attacked ones.

        255 for a network that diverged.
        """
        size = len(self.spec.seeds)
        logits = self.stack.logits(self.points.data.test_inputs)
        classes = torch.where(logits.isfinite().all(2), logits.argmax(2), NO_CLASS)
        found = {"": classes.to(torch.uint8).cpu().numpy()}
        if self.attacked:
            found[", attacked"] = torch.stack(self.attacked).to(torch.uint8).cpu().numpy()
        names = [
            cell_name(c.width, c.samples, c.noise, self._antidote(c), density=c.density, arm=c.arm) for c in self.cells
        ]
        return {
            name + kind: classes[j * size : (j + 1) * size]
            for kind, classes in found.items()
            for j, name in enumerate(names)
        }

    def weights(self) -> dict[str, Any]:
        """Weights now, by `weight_name`, of the networks that the next density is pruned from."""
        return {
            weight_name(cell, seed, name): value.cpu().numpy()
            for i, (cell, seed) in enumerate(self.members)
            if cell.arm == TICKET and not cell.distilled
            for name, value in self.stack.state_dict(i).items()
        }

    def _antidote(self, cell: Cell) -> str:
        if cell.distilled:
            return DISTILLED
        return NONE if cell.decay == self.spec.train.weight_decay else f"weight decay {cell.decay:g}"

    def _weights(self, i: int) -> list[Value]:
        own = self.stack.state_dict(i)
        norm = moved = 0.0
        for name, start in self.starts[i].named_parameters():
            w = own[name].double().cpu()
            norm += float(w.square().sum())
            moved += float((w - start.detach().double()).square().sum())
        return [("", "norm", math.sqrt(norm)), ("", "distance", math.sqrt(moved))]

    def _collapse(self, i: int, cell: Cell, seed: int, epoch: int, step: int) -> list[Record]:
        """Collapse of the training points' last hidden layer, around the labels that were trained on."""
        model = copy.deepcopy(self.starts[i])
        model.load_state_dict(self.stack.state_dict(i))
        model.eval()
        classifier = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))
        name = next(k for k, m in model.named_modules() if m is classifier)
        hidden = [f"hidden.{k}" for k, _ in getattr(model, "hidden", nn.Sequential()).named_children()]
        with tap(model, [*hidden, f"input:{name}"]) as seen, torch.no_grad():
            model(self.points.inputs[: self.samples])
        features = {k: h.flatten(1) for k, h in seen.items()}
        classes = self.points.data.num_classes
        found = collapse(
            features[f"input:{name}"],
            self.given[i],
            num_classes=classes,
            weight=classifier.weight,
            bias=classifier.bias,
        ).asdict()
        rows = self._rows(cell, seed, epoch, step, [("train", m, float(found[m])) for m in COLLAPSE if m in found])
        rows = [row | {"layer": "penultimate"} for row in rows]
        if len(hidden) > 1:
            errors = [1 - collapse(features[k], self.given[i], num_classes=classes).ncc_accuracy for k in hidden]
            first = effective_depth(errors, eps=DEPTH_ERROR).first
            depth = math.nan if first is None else float(first + 1)
            rows += self._rows(cell, seed, epoch, step, [("train", "effective_depth", depth)])
        if self.spec.epsilon:
            rows += self._rows(cell, seed, epoch, step, [self._attacked(model)])
        if self.spec.landscape:
            rows += self._rows(cell, seed, epoch, step, self._landscape(model, self.given[i]))
        return rows

    def _attacked(self, model: nn.Module) -> Value:
        """Accuracy under PGD from the input itself, within `epsilon` of the inputs' range."""
        data = self.points.data
        x, y, (low, high) = data.test_inputs[:ATTACKED_POINTS], data.test_labels[:ATTACKED_POINTS], data.input_range
        found = pgd(model, x, y, self.spec.epsilon * (high - low), bounds=(low, high))
        with torch.no_grad():
            self.attacked.append(model(found).argmax(1))
        return "test", "pgd_accuracy", float((self.attacked[-1] == y).double().mean())

    def _landscape(self, model: nn.Module, given: Tensor) -> list[Value]:
        """What an audit ranks networks by, on the first points of the sample, labels as given."""
        x, y = self.points.inputs[: min(LANDSCAPE_POINTS, self.samples)], given[:LANDSCAPE_POINTS]
        hessian = Hessian(model, x, y)
        margin = float(margins(model, x, y).quantile(0.1))
        spectral = math.prod(spectral_norms(model).values())
        values = [
            ("train", "sharpness", hessian.largest(tolerance=1e-2)),
            ("train", "hessian_trace", hessian.trace(probes=10)),
            ("train", "margin", margin),
            ("train", "normalised_margin", margin / spectral if spectral else math.nan),
            ("", "spectral_product", spectral),
            ("", "frobenius_product", math.prod(frobenius_norms(model).values())),
            ("train", "noise_sigma", perturbation_sigma(model, x, y, draws=5, rounds=8)),
        ]
        if not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules()):
            values.append(("", "path_norm", path_norm(model, self.points.data.input_shape)))
        return values
