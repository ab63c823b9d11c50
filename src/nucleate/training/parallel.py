"""One training on several processes (torchrun): each takes a part of every batch, and all make the same step.

The gradient is that of the whole batch, whatever the parts' sizes, and batch normalisation sees the whole batch, so the
losses are those of one process up to the order of sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def ranks() -> int:
    """Number of processes that train together: 1 without torchrun."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this process among them; the one that writes is 0."""
    return dist.get_rank() if _joined() else 0


def asked_for() -> int:
    """Number of processes that torchrun started, joined already or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started; nothing without it."""
    if asked_for() == 1 or _joined():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield
        dist.barrier()
    except RuntimeError as error:
        if rank() == 0:
            raise
        raise ValueError(f"rank {rank()} lost the others, whose message comes before this: {error}") from error
    finally:
        dist.destroy_process_group()


def told(value: Any = None) -> Any:
    """What rank 0 calls this with, on every rank."""
    if ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def part(index: Tensor) -> Tensor:
    """Those of a batch's indices that are this process's; empty where there are fewer than processes."""
    return index.tensor_split(ranks())[rank()] if ranks() > 1 else index


def total(value: Tensor) -> Tensor:
    """The value summed over all processes, in place; no gradient flows."""
    if ranks() > 1:
        dist.all_reduce(value)
    return value


def total_gradients(model: nn.Module) -> None:
    """Sum every parameter's gradient over all processes, in one message."""
    if ranks() == 1:
        return
    held = [p for p in model.parameters() if p.requires_grad]
    # A parameter that this part of the batch did not touch still takes part.
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
    flat = torch.cat([g.flatten() for g in parts])
    dist.all_reduce(flat)
    for p, g in zip(held, flat.split([p.numel() for p in held]), strict=True):
        p.grad = g.view_as(p)


def share_norms(model: nn.Module) -> None:
    """Let batch normalisation take its moments over the parts of all processes, on a CPU too.

    Names and state dict stay as they are; in eval mode nothing changes.

    Raises:
        ValueError: for batch normalisation of a kind that cannot be shared.
    """
    if ranks() == 1:
        return
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module) in SHARED.values():
            continue
        if type(module) in SHARED and module.momentum is not None and module.running_mean is not None:
            module.__class__ = SHARED[type(module)]  # type: ignore[assignment]
        else:
            raise ValueError(f"{name} is a {type(module).__name__}, whose moments cannot be shared between processes")


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on every process's part of the sum.
        return total(gradients[0].clone())


def _summed(value: Tensor) -> Tensor:
    return cast(Tensor, _Total.apply(value))  # type: ignore[no-untyped-call]


class _Shared:
    def forward(self, x: Tensor) -> Tensor:
        norm = cast(nn.BatchNorm1d, self)
        if not norm.training:
            return cast(Tensor, super().forward(x))  # type: ignore[misc]
        over = [i for i in range(x.ndim) if i != 1]
        count = total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean = _summed(x.sum(over)) / count
        centred = x - mean.view(shape)
        var = _summed(centred.square().sum(over)) / count
        assert norm.momentum is not None and norm.running_mean is not None and norm.running_var is not None
        with torch.no_grad():
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var * count / (count - 1), norm.momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += 1
        out = centred * (var + norm.eps).rsqrt().view(shape)
        return out * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else out


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """Batch normalisation of vectors over the parts of all processes."""


class SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """Batch normalisation of images over the parts of all processes."""


SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
}


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
