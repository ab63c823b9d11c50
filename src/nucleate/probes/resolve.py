"""Which layers a network has, in the order in which it runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.probes.pooling import Pool, pool_for, pool_name, pooled
from nucleate.probes.tap import evaluating, find, listen, named, unwrap

Names = str | re.Pattern[str] | Sequence[str | re.Pattern[str]]
ENDS = ("input", "penultimate", "logits")
"""Layers that every classifier has: what it receives, what its last linear map receives, what it returns."""


@dataclass(frozen=True)
class Layer:
    """A layer as it is reported, and where it is tapped."""

    name: str
    tap: str
    """Name for `tap`: a module, one of its runs ("act#2"), or what it receives ("input:fc")."""
    dim: int
    """d, after pooling."""
    pool: str
    """Pooling to one vector a point, "" where none is needed."""


@dataclass(frozen=True)
class Event:
    """A tensor that passed a place in the forward pass of the example."""

    key: str
    value: Tensor
    version: int
    """Counts in-place operations on the tensor: the same object may hold something else later."""

    def same(self, other: Event) -> bool:
        return self.value is other.value and self.version == other.version


@torch.no_grad()
def resolve_layers(
    model: nn.Module,
    example: Any,
    *,
    layers: Names = "auto",
    classifier: str | None = None,
    pool: Pool | Mapping[str, Pool] = "auto",
) -> list[Layer]:
    """The layers of a network in depth order, found by running an example once.

    "auto": the input, what each weight layer or block hands to the next one (after normalisation, activation and
    dropout, functional ones too), what the classifier receives ("penultimate"), and the output ("logits"). Sequences
    and stacks of blocks are walked into, blocks are not. A layer with the same features as the next one is left out.

    Args:
        model: any module.
        example: a few inputs, as the model takes them: a tensor, a tuple of arguments or a dict of keywords.
        layers: "auto", or names and patterns as for `tap`; "input", "penultimate" and "logits" are always known.
        classifier: name of the last linear map; the last `nn.Linear` that runs, if none.
        pool: as for `pooled`; "auto" takes the input as it is, flattened.

    Raises:
        ValueError: for names that match nothing, modules that did not run, a pooling that does not fit.

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(layer.name, layer.dim) for layer in resolve_layers(net, torch.ones(2, 3))]
    [('input', 3), ('1', 8), ('penultimate', 4), ('logits', 2)]
    """
    trace = Trace(model, example, classifier)
    return trace.auto(pool) if isinstance(layers, str) and layers == "auto" else trace.select(layers, pool)


class Trace:
    """One forward pass of an example: what passed where, in order."""

    def __init__(self, model: nn.Module, example: Any, classifier: str | None = None) -> None:
        self.model = unwrap(model)
        self.modules: dict[str, nn.Module] = {}
        for name, module in named(model).items():
            if module not in self.modules.values():
                self.modules[name] = module
        self.events: dict[str, Event] = {}

        def receive(key: str, value: Tensor) -> None:
            self.events[key] = Event(key, value, -1 if value.is_inference() else value._version)

        every = ["input", "logits", *self.modules, *(f"input:{name}" for name in self.modules)]
        with listen(model, every, receive, lenient=True), evaluating(model):
            call(self.model, example)
        missing = [name for name in ("input", "logits") if name not in self.events]
        if missing:
            raise ValueError(f"the model's {missing[0]} holds no tensor, so there is nothing to probe")
        self.size = len(self.events["input"].value)
        self.classifier = self._classifier(classifier)
        self.order = {key: i for i, key in enumerate(self.events)}

    def _classifier(self, name: str | None) -> str | None:
        if name is None:
            # A reused linear map is named by its last run.
            ran = [key for key in self.events if isinstance(self.modules.get(key.partition("#")[0]), nn.Linear)]
            return ran[-1] if ran else None
        module = named(self.model).get(name.partition("#")[0])
        if module is None:
            find(self.model, name)
        if not isinstance(getattr(module, "weight", None), Tensor):
            raise ValueError(f"the classifier {name!r} has no weight; name the last linear map")
        if f"input:{name}" not in self.events:
            raise ValueError(f"the classifier {name!r} did not run on the example")
        return name

    def head(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight (C, d) and bias of the classifier; 1 x 1 convolutions count as linear maps."""
        if self.classifier is None:
            return None
        module = named(self.model)[self.classifier.partition("#")[0]]
        weight: Tensor = module.weight.detach()  # type: ignore[operator]
        bias = getattr(module, "bias", None)
        return weight.flatten(1), bias.detach() if isinstance(bias, Tensor) else None

    def auto(self, pool: Pool | Mapping[str, Pool]) -> list[Layer]:
        """See `resolve_layers`."""
        groups: list[list[str]] = []
        for level in range(8):
            units = [u for u in self._units(level) if u in self.modules]
            found = self._groups(units)
            if groups and len(found) == len(groups):
                break
            groups = found
            if len(groups) > 2:
                break
        chosen = [self._layer(name, key, pool) for name, key in self._handed_on(groups)]
        chosen = [self._layer("input", "input", pool), *(layer for layer in chosen if layer is not None)]
        if self.classifier is not None:
            chosen.append(self._layer("penultimate", f"input:{self.classifier}", pool))
        chosen.append(self._layer("logits", "logits", pool))
        kept: list[Layer] = []
        for layer in (layer for layer in chosen if layer is not None):
            if kept and self._equal(kept[-1], layer, pool):
                if layer.name not in ENDS:
                    continue
                if kept[-1].name not in ENDS:
                    kept.pop()
            kept.append(layer)
        return kept

    def select(self, names: Names, pool: Pool | Mapping[str, Pool]) -> list[Layer]:
        """Layers by name, in depth order."""
        wanted = [names] if isinstance(names, str | re.Pattern) else list(names)
        if not wanted:
            raise ValueError("no layers to probe; give names, or layers='auto'")
        found: dict[str, str] = {}
        for name in wanted:
            if name == "penultimate" and name not in self.modules:
                if self.classifier is None:
                    raise ValueError("no nn.Linear runs in this model, so it has no 'penultimate'; give classifier=")
                found[f"input:{self.classifier}"] = "penultimate"
                continue
            for point in find(self.model, name):
                keys = [key for key in self.events if key == point.key or key.startswith(f"{point.key}#")]
                if not keys:
                    raise ValueError(f"module {point.name!r} passes on no tensor on this input; leave it out")
                for key in keys if point.run is None else [point.key]:
                    found.setdefault(key, key)
        chosen = []
        for key in sorted(found, key=self.order.__getitem__):
            layer = self._layer(found[key], key, pool)
            if layer is None:
                shape, kind = tuple(self.events[key].value.shape), self.events[key].value.dtype
                raise ValueError(
                    f"layer {key!r} gives {shape} of {kind} for {self.size} points; it needs one floating row a point"
                )
            chosen.append(layer)
        return chosen

    def _layer(self, name: str, key: str, pool: Pool | Mapping[str, Pool]) -> Layer | None:
        """None for what has no floating-point row for each point."""
        h = self.events[key].value
        if not h.is_floating_point() or not h.ndim or len(h) != self.size:
            return None
        how = self._pool(name, pool)
        return Layer(name, key, pooled(h, how).shape[1], pool_name(how, tuple(h.shape)))

    @staticmethod
    def _pool(name: str, pool: Pool | Mapping[str, Pool]) -> Pool:
        how = pool_for(name, pool)
        return "flatten" if name == "input" and how == "auto" else how

    def _equal(self, a: Layer, b: Layer, pool: Pool | Mapping[str, Pool]) -> bool:
        if a.dim != b.dim:
            return False
        x, y = (pooled(self.events[layer.tap].value, self._pool(layer.name, pool)) for layer in (a, b))
        return torch.equal(x, y.to(x))

    def _units(self, level: int) -> Iterator[str]:
        """Modules that count as one step: leaves and blocks; more of the blocks are opened at higher levels."""

        def walk(module: nn.Module, prefix: str, level: int) -> Iterator[str]:
            for name, child in module.named_children():
                child = unwrap(child)
                if isinstance(child, _CONTAINERS) or _is_stack(child):
                    yield from walk(child, f"{prefix}{name}.", level)
                elif level and next(child.children(), None) is not None:
                    yield from walk(child, f"{prefix}{name}.", level - 1)
                else:
                    yield prefix + name

        return walk(self.model, "", level)

    def _groups(self, units: list[str]) -> list[list[str]]:
        """Runs of the units in order, each group begun by one with a weight matrix; before the classifier's."""
        known, groups = set(units), []
        for key in self.events:
            name = key.partition("#")[0]
            if name not in known:
                continue
            if self.classifier is not None and f"{self.classifier}.".startswith(f"{name}."):
                break
            if any(p.ndim >= 2 for p in self.modules[name].parameters()):
                groups.append([key])
            elif groups:
                groups[-1].append(key)
        return groups

    def _handed_on(self, groups: list[list[str]]) -> Iterator[tuple[str, str]]:
        """Name and place of what each group hands to the next; the last one hands on "penultimate", if there is one."""
        listed: list[Event] = []
        for i, group in enumerate(groups):
            last, key = self.events[group[-1]], self._outermost(group)
            if i + 1 < len(groups):
                received = self.events.get(f"input:{groups[i + 1][0]}", last)
                # A functional call in between, or an in-place one: the next layer receives something else.
                if not received.same(last) and not any(received.same(e) for e in listed):
                    last, key = received, received.key
            elif self.classifier is not None:
                return
            listed.append(last)
            yield key, last.key

    def _outermost(self, group: list[str]) -> str:
        """Name of the enclosing sequence that is just this group ("hidden.0" rather than "hidden.0.relu")."""
        key = group[-1]
        prefix = key.rpartition(".")[0]
        while prefix:
            module, event = self.modules.get(prefix), self.events.get(prefix)
            inside = all(name.startswith(f"{prefix}.") for name in group)
            others = [n for n in self.events if n.startswith(f"{prefix}.") and n not in group]
            others = [n for n in others if not any(n.startswith(f"{name}.") for name in group)]
            if not isinstance(module, nn.Sequential) or len(module) < 2 or event is None or not inside or others:
                break
            if not event.same(self.events[group[-1]]):
                break
            key, prefix = prefix, prefix.rpartition(".")[0]
        return key


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_stack(module: nn.Module) -> bool:
    """Whether somewhere inside blocks follow each other in a list."""
    for m in module.modules():
        if isinstance(m, nn.Sequential | nn.ModuleList):
            whole = [c for c in m.children() if not isinstance(c, _CONTAINERS)]
            if sum(next(c.children(), None) is not None for c in whole) > 1:
                return True
    return False


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple or list of arguments, or a dict of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
