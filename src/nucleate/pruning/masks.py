"""The answer to "which weights stay": a dictionary of masks, outside the module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.pruning.coverage import parameters
from nucleate.pruning.threshold import BLOCK
from nucleate.pruning.threshold import ones as ones


class Masks(dict[str, Tensor]):
    """uint8 tensors of ones and zeros by parameter name: 1 stays, 0 is pruned.

    The model never sees them: its parameters, names, `state_dict`, pickles and compiled code stay as they are, and
    `apply` multiplies the weights in place. A weight is pruned because its mask is 0, never because its value is; a
    kept weight may be exactly zero and still trains.

    Args:
        masks: tensors of 0 and 1 (or booleans) by parameter name.
        coupled: names in it that only follow others, such as the biases of units that went; they count in no density.

    Raises:
        ValueError: for values other than 0 and 1.

    >>> masks = Masks({"weight": torch.tensor([[1, 0, 0, 1]])})
    >>> masks.kept, masks.count, masks.density
    (2, 4, 0.5)
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None, *, coupled: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.coupled = coupled
        for name, mask in (masks or {}).items():
            self[name] = mask

    def __setitem__(self, name: str, mask: Tensor) -> None:
        known = mask.dtype == torch.bool or (mask.dtype == torch.uint8 and (not mask.numel() or int(mask.max()) <= 1))
        if not known:
            held = mask.detach()
            if not bool(((held == 0) | (held == 1)).all()):
                raise ValueError(f"the mask of {name!r} holds values other than 0 and 1")
            mask = held.to(torch.uint8)
        super().__setitem__(name, mask.view(torch.uint8) if mask.dtype == torch.bool else mask)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (dict(self), self.coupled)

    @classmethod
    def dense(cls, weights: Mapping[str, Tensor]) -> Masks:
        """Nothing pruned: all ones in the shapes and on the devices of the weights."""
        return cls({name: torch.ones_like(w, dtype=torch.uint8) for name, w in weights.items()})

    @property
    def count(self) -> int:
        """Number of prunable weights."""
        return sum(mask.numel() for _, mask in self._counted())

    @property
    def kept(self) -> int:
        """Number of those that stay."""
        return sum(ones(mask) for _, mask in self._counted())

    @property
    def density(self) -> float:
        """Kept share of the prunable weights."""
        return self.kept / self.count

    @property
    def densities(self) -> dict[str, float]:
        """Kept share by parameter."""
        return {name: ones(mask) / mask.numel() for name, mask in self._counted()}

    @property
    def emptied(self) -> list[str]:
        """Parameters that keep nothing."""
        return [name for name, mask in self._counted() if not ones(mask)]

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks({name: mask.to(device) for name, mask in self.items()}, coupled=self.coupled)

    def clone(self) -> Masks:
        """A copy that shares no memory."""
        return Masks({name: mask.clone() for name, mask in self.items()}, coupled=self.coupled)

    def within(self, other: Mapping[str, Tensor]) -> bool:
        """Whether everything kept here is kept there: pruning in rounds only ever shrinks masks.

        >>> few, more = Masks({"w": torch.tensor([1, 0, 0])}), Masks({"w": torch.tensor([1, 1, 0])})
        >>> few.within(more), more.within(few)
        (True, False)
        """
        return self.keys() == other.keys() and all(bool((mask <= other[name]).all()) for name, mask in self.items())

    def compare(self, other: Mapping[str, Tensor]) -> dict[str, float]:
        """Overlap of the kept sets by parameter and over "all": |both| / |either| (Jaccard), 1 where both are empty.

        Raises:
            ValueError: if the two name different parameters or shapes.

        >>> Masks({"w": torch.tensor([1, 1, 0])}).compare({"w": torch.tensor([0, 1, 1])})["all"]
        0.3333333333333333
        """
        self._match(other, "the other masks")
        both = {name: ones(mask * other[name].to(torch.uint8)) for name, mask in self._counted()}
        either = {name: ones(mask | other[name].to(torch.uint8)) for name, mask in self._counted()}
        out = {name: both[name] / either[name] if either[name] else 1.0 for name in both}
        total = sum(either.values())
        return {"all": sum(both.values()) / total if total else 1.0} | out

    @torch.no_grad()
    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set pruned weights to zero in place, and with an optimizer its state of them too.

        After every optimizer step the weights need it again: momentum, weight decay and Adam all move pruned weights.

        Raises:
            ValueError: if a mask fits no parameter of the model.
        """
        weights = self.find(model)
        for name, w in weights.items():
            multiply(w, self[name])
        if optimizer is not None:
            self.apply_to_state(model, optimizer)

    @torch.no_grad()
    def apply_to_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set the optimizer's state of pruned weights (momentum, second moments) to zero in place."""
        for name, w in self.find(model).items():
            for value in optimizer.state.get(w, {}).values():
                if isinstance(value, Tensor) and value.shape == w.shape:
                    multiply(value, self[name])

    @torch.no_grad()
    def apply_to_gradients(self, model: nn.Module) -> None:
        """Set the gradients of pruned weights to zero in place: call it before clipping by norm."""
        for name, w in self.find(model).items():
            if w.grad is not None:
                multiply(w.grad, self[name])

    def find(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The masked parameters of a model by name; wrappers are looked into.

        Raises:
            ValueError: if a mask has no parameter of its name and shape.
        """
        own = dict(parameters(model))
        self._match(own, f"the parameters of {type(model).__name__}", exact=False)
        return {name: own[name] for name in self}

    def _counted(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, mask) for name, mask in self.items() if name not in self.coupled)

    def _match(self, other: Mapping[str, Tensor], what: str, *, exact: bool = True) -> None:
        missing = [name for name in self if name not in other]
        extra = [name for name in other if name not in self] if exact else []
        if missing or extra:
            raise ValueError(f"masks and {what} differ: {', '.join((missing or extra)[:5])} is only in one of them")
        for name, mask in self.items():
            if mask.shape != other[name].shape:
                raise ValueError(f"the mask of {name!r} is {tuple(mask.shape)}, its weight {tuple(other[name].shape)}")


def multiply(w: Tensor, mask: Tensor) -> None:
    """W *= mask in place. Mixed types go block by block: converted whole, a large mask would leave the cache."""
    mask = mask if mask.device == w.device else mask.to(w.device)
    if w.numel() > BLOCK and w.is_contiguous() and mask.is_contiguous() and w.device.type == "cpu":
        for part, bits in zip(w.view(-1).split(BLOCK), mask.view(-1).split(BLOCK), strict=True):
            part.mul_(bits)
    else:
        w.mul_(mask)


def _rebuild(masks: dict[str, Tensor], coupled: frozenset[str]) -> Masks:
    return Masks(masks, coupled=coupled)
