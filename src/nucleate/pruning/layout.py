"""What a weight tensor's axes mean: outputs, inputs, groups, heads, and what goes together with an output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Ranking = Literal["all", "output"]
"""Between which entries of a tensor scores are compared: all of them, or those of one output."""


@dataclass(frozen=True)
class Heads:
    """Attention heads along one side of a weight tensor.

    With grouped queries (GQA) `kv` < `count`: head h reads key and value head h // (count // kv), and the unit that
    goes is a key and value head with all its queries.
    """

    group: str
    """Name of the attention module: the tensors of one group lose the same heads."""
    role: Literal["q", "k", "v", "qkv", "o"]
    """What the tensor makes; "o" reads the heads along its inputs, the others write them along their outputs."""
    count: int
    kv: int
    size: int
    """Rows (for "o": columns) of one head."""


@dataclass(frozen=True)
class Layout:
    """Axes of one weight tensor.

    `rows` brings every kind to (outputs, inputs of one output), the form in which scores are reduced and selected.

    >>> Layout(kind="linear", shape=(5, 3)).outputs
    5
    >>> Layout(kind="conv_transpose", shape=(4, 3, 2, 2), output=1, groups=2).outputs
    6
    """

    kind: str
    shape: tuple[int, ...]
    output: int = 0
    """Axis of the outputs; `transformers.Conv1D` and transposed convolutions have it second, embeddings too."""
    groups: int = 1
    ranking: Ranking = "all"
    ties: tuple[str, ...] = ()
    """Other names of the same tensor."""
    coupled: tuple[str, ...] = ()
    """Vectors of one value an output that go with it: bias, scale and shift of the normalisation after it."""
    heads: Heads | None = None
    unit: str | None = None
    """Name of the units that go together across tensors: the hidden units of one MLP, say; its own outputs if none."""
    reads: str | None = None
    """Name of the units that this tensor's inputs are: they go when those units go."""

    @property
    def count(self) -> int:
        """Number of weights."""
        return self.outputs * self.inputs

    @property
    def outputs(self) -> int:
        """Number of outputs, over all groups."""
        return self.shape[self.output] * (self.groups if self.kind == "conv_transpose" else 1)

    @property
    def inputs(self) -> int:
        """Weights of one output."""
        size = 1
        for length in self.shape:
            size *= length
        return size // self.outputs

    def rows(self, t: Tensor) -> Tensor:
        """(outputs, inputs of one output) of a tensor in the parameter's shape; a view where it can be.

        >>> import torch
        >>> Layout(kind="conv1d", shape=(2, 3), output=1).rows(torch.arange(6).view(2, 3)).tolist()
        [[0, 3], [1, 4], [2, 5]]
        """
        if self.kind == "conv_transpose" and self.groups > 1:
            grouped = t.reshape(self.groups, self.shape[0] // self.groups, *self.shape[1:])
            return grouped.transpose(1, 2).reshape(self.outputs, -1)
        return t.movedim(self.output, 0).reshape(self.outputs, -1)

    def unrows(self, rows: Tensor) -> Tensor:
        """The parameter's shape again: the inverse of `rows`."""
        if self.kind == "conv_transpose" and self.groups > 1:
            grouped = rows.reshape(self.groups, self.shape[1], self.shape[0] // self.groups, *self.shape[2:])
            return grouped.transpose(1, 2).reshape(self.shape)
        rest = [n for axis, n in enumerate(self.shape) if axis != self.output]
        return rows.reshape(self.outputs, *rest).movedim(0, self.output)

    def with_ranking(self, ranking: Ranking) -> Layout:
        """The same axes under another rule of comparison."""
        return dataclasses.replace(self, ranking=ranking)


class Made(Mapping[str, Tensor]):
    """Tensors by parameter name, each made when it is read: whoever goes through them holds one at a time."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self.names = dict.fromkeys(names)
        self.make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
