"""A whole network run in one native call: at small batches the dispatch of single operators costs more than their work.

A plan is made for one input shape. Every value has a buffer (channels, padded height, padded width, batch), with room
for the padding of those that read it, so that layers write where the next one reads and nothing is moved in between.
Vectors lie in tiles of as many points as the kernel computes at once, (tiles, features, points).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from nucleate.compact import native
from nucleate.compact.build import Builder


class Plan(Builder):
    """The native steps of a network for inputs of one shape; raises ValueError at what it cannot do.

    `shapes` says for each layer "single" or "block": how its weights are held.
    """

    def __init__(self, graph: fx.GraphModule, example: Tensor, shapes: Mapping[str, str]) -> None:
        if example.dtype != torch.float32 or example.device.type != "cpu" or not native.available():
            raise ValueError("a plan runs float32 on the CPU, where the kernel is built")
        super().__init__(graph, example, shapes)
        self.lock = threading.Lock()
        self.array = (native.Step * len(self.steps))(*self.steps)
        tiles = self.batch // self.tile
        self.ends = list(zip(self.array[:tiles], self.array[-tiles:], strict=True))
        """The steps that read a tile of the input, and those that write one of the output."""

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for an input of the plan's shape."""
        x = x.contiguous()
        y = torch.empty(self.output_shape)
        source, target = x.data_ptr(), y.data_ptr()
        with self.lock:
            for i, (first, last) in enumerate(self.ends):
                first.source = source + i * x.nbytes // len(self.ends)
                last.target = target + i * y.nbytes // len(self.ends)
            native.run(self.array, len(self.array))
        return y

    @property
    def bytes(self) -> int:
        """Bytes of weights and of buffers."""
        held = {t.data_ptr(): t.nbytes for t in self.keep}
        return sum(held.values())
