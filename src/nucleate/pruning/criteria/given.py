"""What a criterion is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nucleate.pruning.layout import Layout

Batches = Iterable[tuple[Any, Any]]
"""Pairs of inputs and targets; inputs may be a tensor, or a dict or tuple of arguments."""

Loss = Callable[[Any, Any], Tensor]
"""(output of the model, targets) -> scalar, the mean over the batch."""


@dataclass(frozen=True)
class Given:
    """A model, what of it is to be scored, and what to score it with."""

    model: nn.Module
    """The user's module, without wrappers; a criterion leaves it as it was."""
    weights: dict[str, nn.Parameter]
    """The prunable tensors, as they are: pruned entries are zero."""
    layouts: dict[str, Layout]
    batches: Batches | None = None
    loss: Loss = nn.functional.cross_entropy
    initial: Mapping[str, Tensor] | None = None
    """Weights at initialisation by parameter name."""
    masks: Mapping[str, Tensor] | None = None
    """What is left by earlier rounds; all if none."""
    seed: int = 0
    used: dict[str, Any] = field(default_factory=dict)
    """What the criterion reports about itself: examples, mode, precision."""

    def generator(self, name: str) -> Generator:
        """A generator of this seed and layer: adding a layer changes no other's draws."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def initials(self) -> dict[str, Tensor]:
        """Initial weights of everything scored.

        Raises:
            ValueError: if they were not given, or not all in the weights' shapes.
        """
        if self.initial is None:
            raise ValueError("this method needs the initial weights: give initial=, a state_dict from before training")
        for name, w in self.weights.items():
            if name not in self.initial or self.initial[name].shape != w.shape:
                raise ValueError(f"initial= holds no weight {name!r} of shape {tuple(w.shape)}")
        return {name: self.initial[name].detach().to(w.device) for name, w in self.weights.items()}

    def data(self) -> Iterator[tuple[Any, Any]]:
        """The batches, on the model's device; counts what was used.

        Raises:
            ValueError: if there are none, or an item is no pair.
        """
        if self.batches is None:
            raise ValueError("this method needs data: give batches=, an iterable of (inputs, targets)")
        device = next(iter(self.weights.values())).device
        self.used["examples"], self.used["batches"] = 0, 0
        for item in self.batches:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise ValueError(f"batches= must give pairs (inputs, targets), not {type(item).__name__}")
            inputs, targets = moved(item[0], device), moved(item[1], device)
            self.used["examples"] += size(inputs)
            self.used["batches"] += 1
            yield inputs, targets
        if not self.used["batches"]:
            raise ValueError("batches= is empty; an iterator can be read only once: give a list or a DataLoader")


def run(model: nn.Module, inputs: Any) -> Any:
    """The model's output on a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        ValueError: if the model cannot take them, naming their shapes.
    """
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    except (RuntimeError, TypeError, IndexError) as error:
        # What does not fit shows up as whatever the first operation says about it.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{type(model).__name__} cannot take inputs of shape {shapes(inputs)}: {reason}") from error


def logits(output: Any) -> Any:
    """The tensor that the loss judges: `.logits` of a `transformers` output, else the output itself."""
    return output.logits if hasattr(output, "logits") else output


def size(inputs: Any) -> int:
    """Number of examples in a batch: the first axis of its first tensor.

    >>> size({"input_ids": torch.zeros(4, 7)})
    4
    """
    if isinstance(inputs, Tensor):
        return len(inputs)
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next(size(part) for part in parts if isinstance(part, Tensor | Mapping | tuple | list))


def shapes(inputs: Any) -> str:
    """Shapes of a batch, for messages."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{k}: {shapes(v)}" for k, v in inputs.items()) + "}"
    return "[" + ", ".join(shapes(v) for v in inputs) + "]" if isinstance(inputs, tuple | list) else str(inputs)


def moved(x: Any, device: torch.device) -> Any:
    """A batch on another device."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, Mapping):
        return {k: moved(v, device) for k, v in x.items()}
    return tuple(moved(v, device) for v in x) if isinstance(x, tuple | list) else x
