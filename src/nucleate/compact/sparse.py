"""Linear maps and convolutions that hold, compute and train the weights that are left, and nothing else."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nucleate.compact import ops as ops
from nucleate.compact.geometry import turned_window
from nucleate.compact.pattern import Pattern, pattern, scatter, transposed


class _Sparse(nn.Module):
    """The weights that are left of a matrix, and where they lie."""

    values: nn.Parameter
    bias: nn.Parameter | None
    pointers: Tensor
    indices: Tensor
    order: Tensor
    rows: int
    columns: int

    def _hold(
        self, weight: Tensor, bias: Tensor | None, held: Pattern, turned: tuple[Pattern, Tensor] | None, relu: bool
    ) -> None:
        self.rows, self.columns, self.relu = held.rows, held.columns, relu
        self.values = nn.Parameter(held.gather(weight.detach().reshape(held.rows, held.columns)))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        tensors = {"pointers": held.pointers, "indices": held.indices, "order": held.order}
        if turned is not None:
            tensors |= {"turned_pointers": turned[0].pointers, "turned_indices": turned[0].indices}
            tensors |= {"turned_order": turned[1]}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor)
        self.trainable = turned is not None
        if not self.trainable:
            self.requires_grad_(False)

    def _entries(self) -> tuple[list[Tensor], list[Tensor]]:
        names = ("turned_pointers", "turned_indices", "turned_order") if self.trainable else ()
        return [self.pointers, self.indices, self.order], [cast(Tensor, getattr(self, name)) for name in names]

    def matrix(self) -> Tensor:
        """The weight matrix (rows, columns) with zeros where nothing is left."""
        return scatter(self.values, self.order, self.rows, self.columns)

    def _described(self) -> str:
        block = 4 if self.values.dim() == 2 else 1
        share = self.values.numel() / (self.rows * self.columns)
        return f"left={share:.3g}, block={block}, relu={self.relu}, trainable={self.trainable}"


class SparseLinear(_Sparse):
    """`nn.Linear` on the weights that a mask leaves: y = act(W x + b), the work in proportion to what is left.

    The output's memory is (features, batch), seen as (batch, features): a sparse layer behind it copies nothing.

    Args:
        linear: the layer; its weights and bias are copied.
        mask: (out, in), not 0 where a weight stays; where the weight is not 0 if none.
        block: 1, or 4: rows in fours share their inputs, which is faster per weight; all four stay if one does.
        relu: max(0, y) folded in.
        trainable: keep the transposed pattern too, which the input's gradient needs.

    Raises:
        ValueError: for a mask of another shape or another block.

    >>> dense = nn.Linear(8, 6)
    >>> mask = torch.zeros(6, 8); mask[::2, ::3] = 1
    >>> layer = SparseLinear(dense, mask)
    >>> layer.values.numel(), layer(torch.ones(5, 8)).shape
    (9, torch.Size([5, 6]))
    >>> bool(torch.allclose(layer.matrix(), dense.weight * mask))
    True
    """

    def __init__(
        self,
        linear: nn.Linear,
        mask: Tensor | None = None,
        *,
        block: int = 1,
        relu: bool = False,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        held = pattern(_mask(linear.weight, mask), block=block)
        weight = linear.weight if mask is None else linear.weight * mask
        self._hold(weight, linear.bias, held, transposed(held) if trainable else None, relu)

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of inputs (..., in)."""
        if x.shape[-1] != self.columns:
            raise ValueError(f"a layer of {self.columns} inputs was given {x.shape[-1]}")
        entries, turned = self._entries()
        y = torch.ops.nucleate.sparse_linear(
            x.reshape(-1, self.columns), self.values, self.bias, entries, turned, self.rows, self.relu
        )
        return cast(Tensor, y.unflatten(0, x.shape[:-1]) if x.dim() != 2 else y)

    def extra_repr(self) -> str:
        """Sizes and what is left."""
        return f"{self.columns}, {self.rows}, {self._described()}"


class SparseConv2d(_Sparse):
    """`nn.Conv2d` on the weights that a mask leaves: any window, stride, padding, dilation and groups.

    The output's memory is (channels, height, width, batch), seen as (batch, channels, height, width).

    Args:
        conv: the layer; its weights and bias are copied. Zero padding only.
        mask: (out, in / groups, window, window), not 0 where a weight stays; where the weight is not 0 if none.
        block: 1, or 4: neighbouring outputs in fours share their inputs; needs groups of a multiple of four outputs.
        relu: max(0, y) folded in.
        trainable: keep the transposed pattern too, which the input's gradient needs.

    Raises:
        ValueError: for a mask of another shape, another block or another kind of padding.

    >>> conv = nn.Conv2d(4, 8, 3, padding=1, stride=2)
    >>> layer = SparseConv2d(conv, torch.rand(8, 4, 3, 3) < 0.5)
    >>> layer(torch.ones(2, 4, 9, 9)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        mask: Tensor | None = None,
        *,
        block: int = 1,
        relu: bool = False,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ValueError(f"a sparse convolution pads with zeros, not in mode {conv.padding_mode!r}")
        if block != 1 and conv.out_channels // conv.groups % block:
            raise ValueError(
                f"{conv.out_channels // conv.groups} outputs in a group are no multiple of {block}: use single weights"
            )
        self.shape = list(conv.weight.shape)
        self.groups, self.stride, self.dilation = conv.groups, list(conv.stride), list(conv.dilation)
        self.padding = conv_padding(conv)
        matrix = _mask(conv.weight, mask).reshape(conv.out_channels, -1)
        held = pattern(matrix, block=block, window=self.shape[3])
        turned = turned_window(held, self.groups, self.shape, self.stride, self.dilation) if trainable else None
        self._hold(conv.weight if mask is None else conv.weight * mask, conv.bias, held, turned, relu)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out, height, width) of images (N, in, height, width)."""
        if x.dim() != 4 or x.shape[1] != self.shape[1] * self.groups:
            raise ValueError(
                f"a layer of {self.shape[1] * self.groups} channels reads (N, channels, height, width), "
                f"not {tuple(x.shape)}"
            )
        entries, turned = self._entries()
        return cast(
            Tensor,
            torch.ops.nucleate.sparse_conv2d(
                x,
                self.values,
                self.bias,
                entries,
                turned,
                self.groups,
                self.shape,
                self.stride,
                self.padding,
                self.dilation,
                self.relu,
            ),
        )

    def extra_repr(self) -> str:
        """Sizes and what is left."""
        return (
            f"{self.shape[1] * self.groups}, {self.shape[0]}, kernel_size={tuple(self.shape[2:])}, "
            f"stride={tuple(self.stride)}, padding={tuple(self.padding)}, dilation={tuple(self.dilation)}, "
            f"groups={self.groups}, {self._described()}"
        )


def conv_padding(conv: nn.Conv2d) -> list[int]:
    """Padding in y and x as numbers.

    Raises:
        ValueError: for "same" with an even window, which pads one side more than the other.

    >>> conv_padding(nn.Conv2d(1, 1, 3, padding="same"))
    [1, 1]
    """
    if not isinstance(conv.padding, str):
        return list(conv.padding)
    reach = [d * (k - 1) if conv.padding == "same" else 0 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    if any(r % 2 for r in reach):
        raise ValueError(f'padding="same" of a window {conv.kernel_size} is uneven: pad explicitly')
    return [r // 2 for r in reach]


def _mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return weight.detach() != 0
    if mask.shape != weight.shape:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit a weight of shape {tuple(weight.shape)}")
    return mask
