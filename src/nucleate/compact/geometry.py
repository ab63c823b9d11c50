"""Where a sparse convolution finds its inputs: constant offsets into an image that is padded and sorted by phase.

With stride s, row y of the padded image goes to phase y mod s, place y div s, so that an output and its right neighbour
read neighbours. The batch is innermost: positions (place y, place x, image) of a channel and phase are one long run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nucleate.compact import native
from nucleate.compact.pattern import Pattern, pattern

SHORT = 64
"""Floats: shorter rows of the output are computed as whole planes, with a few columns in vain."""


class Window:
    """A convolution's window on images of one size."""

    def __init__(
        self,
        size: tuple[int, ...],
        groups: int,
        shape: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        *,
        places: Sequence[int] | None = None,
    ) -> None:
        self.batch, self.channels, self.height, self.width = size
        self.shape, self.stride, self.padding, self.dilation = shape, stride, padding, dilation
        self.reach = [dilation[i] * (shape[2 + i] - 1) for i in range(2)]
        self.out = [
            (extent + 2 * padding[i] - self.reach[i] - 1) // stride[i] + 1
            for i, extent in enumerate((self.height, self.width))
        ]
        if min(self.out) < 1:
            raise ValueError(
                f"an image of {self.height} x {self.width} with padding {tuple(padding)} is smaller than the window, "
                f"{tuple(shape[2:])} with dilation {tuple(dilation)}"
            )
        self.padded = list(places or (self.out[i] + self.reach[i] // stride[i] for i in range(2)))
        """Places of a phase in y and x: those that are read, unless the image lies in a larger one."""
        self.behind = [self.padded[i] - self.out[i] for i in range(2)]
        self.whole = self.out[1] * self.batch < SHORT
        plane = math.prod(self.padded)
        self.group_step = shape[1] * math.prod(stride) * plane
        self.turned_plane = math.prod(self.padded[i] + self.behind[i] for i in range(2))
        self.turned_group_step = shape[0] // groups * self.turned_plane

    @property
    def phases_shape(self) -> tuple[int, ...]:
        """(channels, phases y, phases x, places y, places x, batch)."""
        return self.channels, *self.stride, *self.padded, self.batch

    def _margins(self) -> list[int]:
        x, y = (
            [self.padding[i], self.padded[i] * self.stride[i] - extent - self.padding[i]]
            for i, extent in ((1, self.width), (0, self.height))
        )
        return [*x, *y]

    def unfold(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W) as `phases_shape`, contiguous."""
        n, c = x.shape[:2]
        (sy, sx), (py, px) = self.stride, self.padded
        padded = F.pad(x, self._margins())
        return padded.reshape(n, c, py, sy, px, sx).permute(1, 3, 5, 2, 4, 0).contiguous()

    def fold(self, image: Tensor) -> Tensor:
        """The inverse of `unfold`: what lies in the padding is dropped."""
        (sy, sx), (py, px) = self.stride, self.padded
        full = image.permute(5, 0, 3, 1, 4, 2).reshape(self.batch, self.channels, py * sy, px * sx)
        return F.pad(full, [-margin for margin in self._margins()])

    def table(self) -> Tensor:
        """(C / groups * window,) int32: position of a weight's input within its group."""
        (sy, sx), (py, px) = self.stride, self.padded
        dy, dx = self._reads()
        c = torch.arange(self.shape[1])[:, None, None]
        place = ((c * sy + dy % sy) * sx + dx % sx) * (py * px) + dy // sy * px + dx // sx
        return place.reshape(-1).to(torch.int32)

    def turned_table(self) -> Tensor:
        """(rows / groups * window,) int32: position in the padded gradient of what an input's gradient is made of."""
        height, width = (self.padded[i] + self.behind[i] for i in range(2))
        dy, dx = self._reads()
        row = torch.arange(self.turned_group_step // self.turned_plane)[:, None, None]
        place = (row * height + self.behind[0] - dy // self.stride[0]) * width + self.behind[1] - dx // self.stride[1]
        return place.reshape(-1).to(torch.int32)

    def pad_gradient(self, g: Tensor) -> Tensor:
        """The output's gradient (N, rows, h, w) as (rows, places y + behind, places x + behind, N), zero outside."""
        (by, bx), (py, px), (h, w) = self.behind, self.padded, self.out
        return F.pad(g, [bx, px - w, by, py - h]).permute(1, 2, 3, 0).contiguous()

    def positions(self, product: native.Product, *, whole: bool | None = None) -> None:
        """Fill in the runs of positions: one for each row of the output, or one for the whole plane."""
        n, (h, w), pitch = self.batch, self.out, self.padded[1]
        if self.whole if whole is None else whole:
            product.lines, product.length = 1, ((h - 1) * pitch + w) * n
            product.y_pitch = h * pitch * n
        else:
            product.lines, product.length = h, w * n
            product.x_step, product.y_step, product.y_pitch = pitch * n, w * n, h * w * n

    def turned_positions(self, product: native.Product) -> None:
        """Fill in the runs of positions of the input's gradient."""
        n, (py, px) = self.batch, self.padded
        product.lines, product.length = py, px * n
        product.x_step, product.y_step, product.y_pitch = (px + self.behind[1]) * n, px * n, py * px * n

    def _reads(self) -> tuple[Tensor, Tensor]:
        dy = torch.arange(self.shape[2])[:, None] * self.dilation[0]
        dx = torch.arange(self.shape[3])[None, :] * self.dilation[1]
        return dy, dx


def turned_window(
    matrix: Pattern, groups: int, shape: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Pattern, Tensor]:
    """Pattern of a convolution's input gradient, and where its values lie among the flat values of `matrix`.

    Its rows are (channel, phase y, phase x), its columns (output within the group, window y, window x).
    """
    outputs, inputs, ky, kx = shape
    (sy, sx), per_group = stride, outputs // groups
    flat = matrix.order.reshape(-1)
    entry = torch.arange(len(flat), device=flat.device)
    entry, flat = entry[flat < matrix.rows * matrix.columns], flat[flat < matrix.rows * matrix.columns]
    output, column = flat // matrix.columns, flat % matrix.columns
    channel, y, x = column // (ky * kx), column // kx % ky, column % kx
    channel = channel + output // per_group * inputs
    row = (channel * sy + y * dilation[0] % sy) * sx + x * dilation[1] % sx
    place = row * (per_group * ky * kx) + (output % per_group * ky + y) * kx + x
    where = torch.full((inputs * groups * sy * sx * per_group * ky * kx,), -1, dtype=torch.int64, device=flat.device)
    where[place] = entry
    turned = pattern((where >= 0).view(inputs * groups * sy * sx, -1), window=kx)
    return turned, where[turned.order]
