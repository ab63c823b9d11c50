"""The native steps of a traced network: buffers, layouts, and one step or a few for each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nucleate.compact import native
from nucleate.compact.geometry import SHORT, Window
from nucleate.compact.pattern import Pattern, narrow, pattern
from nucleate.compact.reading import Reading
from nucleate.compact.sparse import conv_padding

BLOCK_WIDTHS = {"baseline": 8, "avx2": 16, "avx512": 64}
"""Positions that the kernel's loop over blocks computes at once."""


@dataclass
class Value:
    """What a node of the network gives: (channels, height, width), a vector as (features, 1, 1)."""

    channels: int
    height: int
    width: int
    pad: int = 0
    buffer: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows of the padded image."""
        return self.height + 2 * self.pad

    @property
    def pitch(self) -> int:
        """Positions from one row to the next."""
        return self.width + 2 * self.pad

    def start(self, pad: int) -> int:
        """Position of the first value of an image that is padded by `pad`."""
        return (self.pad - pad) * (self.pitch + 1)


class Builder(Reading):
    """Appends the steps of one network for inputs of one shape."""

    def __init__(self, graph: fx.GraphModule, example: Tensor, shapes: Mapping[str, str]) -> None:
        super().__init__(graph)
        self.batch = example.shape[0]
        self.steps: list[native.Step] = []
        self.names: list[str] = []
        self.keep: list[Any] = []
        self.shapes = shapes
        ShapeProp(graph).propagate(example.clone())
        self.values: dict[fx.Node, Value] = {}
        self.input_shape = tuple(example.shape)
        self.tile = self._tile(graph)
        for node in graph.graph.nodes:
            self._emit(node)

    def _tile(self, graph: fx.GraphModule) -> int:
        """Points whose vectors lie together: a kernel's width, so that what it walks over is one piece of memory.

        In rows of a power of two beyond that, inputs fall on a few sets of the caches and push each other out.
        """
        single = False
        for node in graph.graph.nodes:
            shape = getattr(node.meta.get("tensor_meta"), "shape", ())
            if len(shape) != 2 or self._kind(node) in ("add", "maximum", "average"):
                return self.batch
            single |= self._kind(node) == "product" and self.shapes.get(str(node.target), "single") == "single"
        width = 64 if single else BLOCK_WIDTHS[native.instruction_set()]
        return self.batch if self.batch % width else width

    def _value(self, node: fx.Node) -> Value:
        shape = tuple(node.meta["tensor_meta"].shape)
        if len(shape) not in (2, 4) or shape[0] != self.batch:
            raise ValueError(f"{node.name} has shape {shape}: neither vectors nor images of the batch")
        value = Value(*shape[1:], pad=self._pads.get(node, 0)) if len(shape) == 4 else Value(shape[1], 1, 1)
        value.buffer = torch.zeros(value.channels * value.rows * value.pitch * self.batch)
        self.keep.append(value.buffer)
        self.values[node] = value
        return value

    def _layout(self, layout: native.Layout, value: Value) -> None:
        n = self.tile
        layout.phases, layout.batch, layout.column, layout.row = 1, 1, n, value.pitch * n
        layout.channel, layout.pad_y, layout.pad_x = value.rows * value.pitch * n, value.pad, value.pad

    def _step(self, kind: int, name: str) -> native.Step:
        step = native.Step(kind=kind)
        step.from_.phases = step.to.phases = 1
        self.steps.append(step)
        self.names.append(name)
        return step

    def _emit(self, node: fx.Node) -> None:
        """Append a node's steps."""
        kind = self._kind(node)
        if kind == "placeholder":
            if self.values:
                raise ValueError("a plan reads one tensor")
            self._read(node)
        elif kind == "output":
            self._write(node)
        elif kind == "product":
            self._product(node)
        elif kind in ("maximum", "average"):
            self._pool(node, kind)
        elif kind == "add":
            self._add(node)
        elif kind == "flatten":
            self._flatten(node)
        elif kind == "gelu":
            self._gelu(node)
        elif kind == "relu" and not self._is_folded(node):
            raise ValueError(f"{node.name} follows no layer that it could be folded into")
        elif kind == "get_attr":
            raise ValueError(f"{node.target} is a tensor of the model's own")

    def _read(self, node: fx.Node) -> None:
        value = self._value(node)
        if len(node.meta["tensor_meta"].shape) == 2:
            for i in range(self.batch // self.tile):
                step = self._step(native.PICK, "input")
                step.target = native.pointer(value.buffer, i * value.channels * self.tile)
                step.channels, step.height, step.batch = value.channels, self.tile, self.tile
            return
        step = self._step(native.COPY, "input")
        step.target = native.pointer(value.buffer)
        self._layout(step.to, value)
        step.from_.batch, step.from_.column = value.channels * value.height * value.width, 1
        step.channels, step.height, step.width, step.batch = value.channels, value.height, value.width, self.batch
        step.from_.row, step.from_.channel = value.width, value.height * value.width

    def _write(self, node: fx.Node) -> None:
        source = node.args[0]
        if not isinstance(source, fx.Node):
            raise ValueError("a plan gives one tensor")
        value = self.values[self._through(source)]
        whole = value.channels * value.height * value.width
        for i in range(self.batch // self.tile):
            step = self._step(native.COPY, "output")
            step.source = native.pointer(value.buffer, i * whole * self.tile)
            self._layout(step.from_, value)
            step.channels, step.height, step.width, step.batch = value.channels, value.height, value.width, self.tile
            step.to.column, step.to.row, step.to.channel = 1, value.width, value.height * value.width
            step.to.batch = whole
        self.output_shape = tuple(source.meta["tensor_meta"].shape)

    def _product(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)]
        source = self.values[self._source(node)]
        value = self._value_of_made(node)
        name, n = str(node.target), self.batch
        held = hold(module, self.shapes.get(name, "single"), n)
        if isinstance(module, nn.Conv2d):
            padding, stride = conv_padding(module), list(module.stride)
            size = (n, source.channels, source.height, source.width)
            shape, dilation = list(module.weight.shape), list(module.dilation)
            if max(stride) > 1:
                if stride[0] != stride[1]:
                    raise ValueError(f"{name}: strides {tuple(stride)} differ")
                window = Window(size, module.groups, shape, stride, padding, dilation)
                places = [
                    max(window.padded[i], -(-(extent + padding[i]) // stride[i]))
                    for i, extent in enumerate((source.height, source.width))
                ]
                address = self._phases(source, stride[0], padding, places, name)
            else:
                assert source.pad >= max(padding), "the buffer has no room for the padding"
                places = [source.rows, source.pitch]
                start = (source.pad - padding[0]) * source.pitch + source.pad - padding[1]
                address = native.pointer(source.buffer, start * n)
            window = Window(size, module.groups, shape, stride, padding, dilation, places=places)
            groups, table, group_step, pitch = module.groups, window.table(), window.group_step, places[1]
        else:
            if source.height * source.width != 1:
                raise ValueError(f"{name} reads vectors, not images: flatten them first")
            groups, table, group_step, pitch = 1, torch.arange(held.columns), 0, 1
            address = native.pointer(source.buffer)
        offsets = _offsets(held, table, held.rows // groups, group_step)
        values = held.gather(module.weight.detach().reshape(held.rows, held.columns))
        bias = None if module.bias is None else module.bias.detach().clone()
        self.keep += [held.pointers, offsets, values] + ([bias] if bias is not None else [])
        step = self._step(native.PRODUCT, name)
        p = step.product
        p.rows, p.segments, p.block = held.rows, held.pointers.shape[0], held.block
        p.pointers, p.indices, p.values = (native.pointer(t) for t in (held.pointers, offsets, values))
        p.wide, p.bias = int(offsets.dtype == torch.int32), native.pointer(bias)
        p.relu = int(self._relu_after(node) is not None)
        p.x, p.unit, p.x_step = address, n, pitch * n
        p.y = native.pointer(value.buffer, value.start(0) * n)
        p.y_pitch, p.y_step = value.rows * value.pitch * n, value.pitch * n
        p.lines, p.length = value.height, value.width * n
        if self.tile < n:
            p.unit, p.x_step, p.lines, p.length = self.tile, held.columns * self.tile, n // self.tile, self.tile
            p.y_pitch, p.y_step = self.tile, held.rows * self.tile
        if value.width * n < SHORT and value.height > 1 and pitch == value.pitch:
            p.lines, p.length = 1, ((value.height - 1) * pitch + value.width) * n
            if value.pad:
                clear = self._step(native.CLEAR, name)
                clear.target = native.pointer(value.buffer)
                self._layout(clear.to, value)
                clear.channels, clear.height, clear.width = value.channels, value.height - 1, value.width

    def _value_of_made(self, node: fx.Node) -> Value:
        value = self._value(node)
        relu = self._relu_after(node)
        if relu is not None:
            self.values[relu] = value
        return value

    def _phases(self, source: Value, stride: int, padding: list[int], places: list[int], name: str) -> int | None:
        """Copy an image into one that is sorted by phase."""
        n = self.batch
        plane = places[0] * places[1] * n
        image = torch.zeros(source.channels * stride * stride * plane)
        self.keep.append(image)
        step = self._step(native.COPY, name)
        step.source, step.target = native.pointer(source.buffer), native.pointer(image)
        self._layout(step.from_, source)
        step.channels, step.height, step.width, step.batch = source.channels, source.height, source.width, n
        to = step.to
        to.phases, to.batch, to.column, to.row = stride, 1, n, places[1] * n
        to.phase_x, to.phase_y, to.channel = plane, stride * plane, stride * stride * plane
        to.pad_y, to.pad_x = padding
        return native.pointer(image)

    def _pool(self, node: fx.Node, kind: str) -> None:
        module: Any = self.modules[str(node.target)]
        source, value = self.values[self._source(node)], self._value(node)
        step = self._step(native.MAXIMUM if kind == "maximum" else native.AVERAGE, str(node.target))
        step.source, step.target = native.pointer(source.buffer), native.pointer(value.buffer)
        self._layout(step.from_, source)
        self._layout(step.to, value)
        step.channels, step.height, step.width, step.batch = source.channels, source.height, source.width, self.batch
        step.out_height, step.out_width = value.height, value.width
        if isinstance(module, nn.AdaptiveAvgPool2d):
            if (value.height, value.width) != (1, 1):
                raise ValueError(f"{node.target}: an average to {value.height} x {value.width}")
            window, stride, padding = (source.height, source.width), (1, 1), (0, 0)
        else:
            window, padding = _pair(module.kernel_size), _pair(module.padding)
            stride = _pair(module.stride)
            if kind == "average" and (max(padding) or module.ceil_mode or module.divisor_override):
                raise ValueError(f"{node.target}: an average with padding, ceil_mode or divisor")
            if kind == "maximum" and _pair(module.dilation) != (1, 1):
                raise ValueError(f"{node.target}: a dilated maximum")
        (step.window_y, step.window_x), (step.stride_y, step.stride_x) = window, stride
        step.pad_y, step.pad_x = padding

    def _add(self, node: fx.Node) -> None:
        first, second = (self._through(a) if isinstance(a, fx.Node) else None for a in node.args[:2])
        if first is None or second is None or node.kwargs:
            raise ValueError(f"{node.name} adds no two tensors")
        value = self._value_of_made(node)
        for kind, source in ((native.COPY, self.values[first]), (native.ADD, self.values[second])):
            if (source.channels, source.height, source.width) != (value.channels, value.height, value.width):
                raise ValueError(f"{node.name} adds tensors of different shapes")
            step = self._step(kind, node.name)
            step.source, step.target = native.pointer(source.buffer), native.pointer(value.buffer)
            self._layout(step.from_, source)
            self._layout(step.to, value)
            step.channels, step.height, step.width = value.channels, value.height, value.width
            step.batch = self.batch
            step.relu = int(kind == native.ADD and self._relu_after(node) is not None)

    def _gelu(self, node: fx.Node) -> None:
        module: Any = self.modules[str(node.target)]
        source = self._source(node)
        if module.approximate != "none" or not self._is_only_reader(node):
            raise ValueError(f"{node.target}: an approximate GELU, or one whose input is read elsewhere too")
        value = self.values[node] = self.values[source]
        step = self._step(native.GELU, str(node.target))
        # Padding stays as it is: GELU(0) = 0.
        step.target, step.channels = native.pointer(value.buffer), value.channels
        step.height = value.rows * value.pitch * self.batch

    def _flatten(self, node: fx.Node) -> None:
        source, value = self.values[self._source(node)], self._value(node)
        if source.channels * source.height * source.width != value.channels or value.height * value.width != 1:
            raise ValueError(f"{node.name} flattens the batch or a part of the image")
        if source.pad == 0 and self._is_only_reader(node):
            value.buffer = source.buffer
            return
        step = self._step(native.COPY, node.name)
        step.source, step.target = native.pointer(source.buffer), native.pointer(value.buffer)
        self._layout(step.from_, source)
        self._layout(step.to, Value(source.channels, source.height, source.width))
        step.channels, step.height, step.width, step.batch = source.channels, source.height, source.width, self.batch


def hold(module: nn.Module, shape: str, batch: int) -> Pattern:
    """The pattern of a layer's weights that are not 0, as "single" weights or in a "block" of four rows."""
    assert isinstance(module, nn.Linear | nn.Conv2d)
    convolution = isinstance(module, nn.Conv2d)
    window = module.kernel_size[1] if isinstance(module, nn.Conv2d) else 1
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    block = 4 if shape == "block" and (not convolution or module.weight.shape[0] // groups % 4 == 0) else 1
    kept = module.weight.detach().flatten(1) != 0
    return pattern(kept, block=block, window=window, positions=64 if convolution else batch)


def _offsets(held: Pattern, table: Tensor, rows_per_group: int, group_step: int) -> Tensor:
    """Position of each entry's input."""
    units = torch.arange(held.pointers.shape[1] - 1).repeat(held.pointers.shape[0])
    row = torch.repeat_interleave(units, held.pointers.diff(dim=1).reshape(-1).long()) * held.block
    offsets = table.long()[held.indices.long()] + row // rows_per_group * group_step
    return narrow(offsets, int(offsets.max()) + 1 if len(offsets) else 0)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
