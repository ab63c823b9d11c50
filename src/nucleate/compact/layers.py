"""Layers as matrices: their weights whatever their kind, what they make of constants, and how they are made smaller."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is the transposed linear map of `transformers`."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_activation(module: nn.Module) -> bool:
    """Whether it is an activation of `transformers`."""
    return type(module).__module__ == "transformers.activations" and not list(module.parameters())


def is_hooked(module: nn.Module) -> bool:
    """Whether the user's code runs before or after it, which another form of the layer would leave out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_inputs_first(module: nn.Module) -> bool:
    """Whether its weights are held as (in, out, ...)."""
    return is_transposed(module) or isinstance(module, TRANSPOSED)


def matrix(module: nn.Module) -> Tensor:
    """A copy of the weights, (out, in / groups, ...)."""
    weight = cast(Tensor, module.weight).detach()
    return (weight.transpose(0, 1) if is_inputs_first(module) else weight).clone()


def taps(weight: Tensor) -> Tensor:
    """(out, in / groups, window) of weights with any window, or none."""
    return weight.reshape(*weight.shape[:2], -1)


def set_matrix(module: nn.Module, weight: Tensor) -> None:
    """Put weights (out, in / groups, ...) in, as the module holds them."""
    old = cast(nn.Parameter, module.weight)
    new = weight.transpose(0, 1).contiguous() if is_inputs_first(module) else weight
    module.weight = nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)


def groups_of(module: nn.Module) -> int:
    """Groups of a convolution; 1 of anything else."""
    return int(getattr(module, "groups", 1))


def is_uneven(module: nn.Module | None) -> bool:
    """Whether it makes something else than a constant of a constant image.

    Zeros come in at the border, where other kinds of padding repeat what is there; the windows of a transposed
    convolution overlap in parts.
    """
    if isinstance(module, TRANSPOSED):
        return True
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding == "same"
    return bool(torch.tensor(padding).any())


def normalised(norm: _BatchNorm, constant: Tensor) -> Tensor:
    """What a normalisation makes of constants."""
    assert norm.running_mean is not None and norm.running_var is not None
    out = (constant - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
    if norm.weight is not None:
        out = out * norm.weight.double()
        # What is multiplied by 0 is constant, whatever came in.
        out = torch.where(norm.weight == 0, 0.0, out)
        out = out + norm.bias.double()
    return out


def add_bias(module: nn.Module, rows: slice, shift: Tensor) -> None:
    """Add to some outputs' bias, which is made where there is none."""
    bias, weight = cast(nn.Parameter | None, module.bias), cast(nn.Parameter, module.weight)
    if bias is None:
        if not bool(shift.any()):
            return
        outputs = weight.shape[1] if is_inputs_first(module) else weight.shape[0]
        bias = nn.Parameter(weight.new_zeros(outputs), requires_grad=weight.requires_grad)
        module.bias = bias
    bias.data[rows] += shift.to(bias.dtype)


def cut_norm(norm: _BatchNorm, keep: Tensor) -> None:
    """Keep some channels of a normalisation."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(norm, name)
        if isinstance(tensor, nn.Parameter):
            setattr(norm, name, nn.Parameter(tensor.detach()[keep], requires_grad=tensor.requires_grad))
        elif tensor is not None:
            setattr(norm, name, tensor[keep])
    norm.num_features = int(keep.sum())


def cut_layer(module: nn.Module, keep_in: Tensor, keep_out: Tensor) -> None:
    """Keep some inputs and outputs of a layer; of a grouped one whole groups."""
    weight, groups = matrix(module), groups_of(module)
    if groups > 1:
        left = keep_out.view(groups, -1)[:, 0]
        weight = weight[keep_out]
        cast(Any, module).groups = int(left.sum())
    else:
        weight = weight[keep_out][:, keep_in]
    set_matrix(module, weight)
    if module.bias is not None:
        bias = cast(nn.Parameter, module.bias)
        module.bias = nn.Parameter(bias.detach()[keep_out], requires_grad=bias.requires_grad)
    sizes = int(keep_in.sum()), int(keep_out.sum())
    convolution = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
    names = ("in_channels", "out_channels") if convolution else ("in_features", "out_features")
    if is_transposed(module):
        names = ("nx", "nf")
    for name, size in zip(names, sizes, strict=True):
        setattr(module, name, size)
