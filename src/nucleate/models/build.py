"""A model spec -> a network with weights drawn from the given generator."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, nn

from nucleate.functions import find_function, is_function_name
from nucleate.models.convnet import Conv, ConvNet
from nucleate.models.mlp import MLP, LeNet
from nucleate.models.pretrained import from_folder, is_pretrained
from nucleate.models.resnet import Block, ResNet
from nucleate.models.transformer import Transformer, TransformerBlock
from nucleate.spec import ModelSpec

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "lenet": LeNet,
    "convnet": ConvNet,
    "conv": Conv,
    "resnet": ResNet,
    "transformer": Transformer,
}
"""Every network that has a name: called with the channels (flat ones: values; conv: shape), the classes, the fields."""

FLAT = ("mlp", "lenet", "transformer")
"""Networks that read their input as one vector."""


def build(spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int, *, generator: Generator) -> nn.Module:
    """Network of a spec, for inputs (N, *input_shape), with C = num_classes outputs (two for two classes).

    Its last linear map is named `classifier`. Weights are drawn by `initialise` from the generator; the global
    generator is neither read nor moved. The network of a user's `package.module:function` (see `from_function`) keeps
    its own initial values.

    Raises:
        ValueError: for an unknown name, a width, depth or input shape that makes no network, a function that fails.

    >>> net = build(ModelSpec(width=16, depth=2), (1, 8, 8), 10, generator=Generator().manual_seed(0))
    >>> sum(p.numel() for p in net.parameters())  # 65 x 16 + 17 x 16 + 17 x 10
    1482
    """
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least two classes, not {num_classes}")
    if spec.name not in MODELS:
        if is_function_name(spec.name):
            size = {"width": spec.width, "depth": spec.depth}
            return from_function(spec.name, input_shape, num_classes, generator, **size)
        if is_pretrained(spec.name):
            return from_folder(spec.name)
        near = difflib.get_close_matches(spec.name, MODELS, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"there are {', '.join(MODELS)}, package.module:function and folders of transformers"
        )
        raise ValueError(f"no model is named {spec.name!r}; {hint}")
    if spec.width < 1 or spec.depth < (0 if spec.name == "mlp" else 1):
        raise ValueError(f"model.width and model.depth must be at least 1, not {spec.width} and {spec.depth}")
    inputs: Any
    if spec.name in FLAT:
        inputs = math.prod(input_shape)
    elif len(input_shape) == 3:
        inputs = input_shape if spec.name == "conv" else input_shape[0]
    else:
        raise ValueError(
            f"{spec.name} reads images (channels, height, width), not inputs of shape {input_shape}; use mlp"
        )
    # Modules on the meta device draw nothing, so the global generator stays where it was.
    with torch.device("meta"):
        model = MODELS[spec.name](inputs, num_classes, width=spec.width, depth=spec.depth, batchnorm=spec.batchnorm)
    model.to_empty(device="cpu")
    initialise(model, generator, law=spec.init)
    return model


@torch.no_grad()
def initialise(model: nn.Module, generator: Generator, *, law: str = "he") -> None:
    """Draw all weights anew, in module order.

    Linear maps and convolutions: normal with variance 2 / fan-in, the law that keeps the size of ReLU activations
    (He et al. 2015, eq. 10); `classifier`: 1 / fan-in, as no ReLU follows it. With law "glorot": normal with variance
    2 / (fan-in + fan-out) everywhere (Glorot, Bengio 2010, eq. 12). Biases 0; batch normalisation 1 and 0,
    its running mean and variance 0 and 1. Without batch normalisation the last convolution of each of L residual
    branches is divided by sqrt(L), without which activations double from block to block (Hanin, Rolnick 2018).

    >>> layer = nn.Linear(2000, 500)
    >>> initialise(layer, Generator().manual_seed(0))
    >>> round(float(layer.weight.detach().std() * math.sqrt(2000 / 2)), 2)
    1.0
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gain = 1.0 if name == "classifier" else 2.0
            fan_in = module.weight[0].numel()
            variance = gain / fan_in
            if law == "glorot":
                fan_out = len(module.weight) * module.weight[0, 0].numel()
                variance = 2 / (fan_in + fan_out)
            module.weight.normal_(0.0, math.sqrt(variance), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, 0.02, generator=generator)
    if isinstance(model, Transformer):
        _as_gpt2(model, generator)
    blocks = [m for m in model.modules() if isinstance(m, Block) and isinstance(m.norm2, nn.Identity)]
    for block in blocks:
        block.conv2.weight.div_(math.sqrt(len(blocks)))


def _as_gpt2(model: Transformer, generator: Generator) -> None:
    """Linear maps with standard deviation 0.02, those into the residual stream over sqrt(2 L) (Radford et al. 2019)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, 0.02, generator=generator)
    for block in model.modules():
        if isinstance(block, TransformerBlock):
            for last in (block.attention.out, block.down):
                last.weight.div_(math.sqrt(2 * len(model.blocks)))


def from_function(
    name: str, input_shape: tuple[int, ...], num_classes: int, generator: Generator, **size: int
) -> nn.Module:
    """Network of the user's `package.module:function`.

    It gets `input_shape`, `num_classes`, `generator` and, if given, `width` and `depth` where it has parameters of
    these names; without the first two but in need of arguments, shape and classes in this order. Its draws from the
    global generator come from one that is seeded from `generator` for the call and put back.

    Raises:
        ValueError: if there is no such function, it fails, or it makes no module.

    >>> from_function("torch.nn:Identity", (1, 8, 8), 10, Generator())
    Identity()
    """
    function = find_function(name)
    known = {"input_shape": input_shape, "num_classes": num_classes}
    parameters = _parameters(function)
    options: dict[str, Any] = {k: v for k, v in (known | size | {"generator": generator}).items() if k in parameters}
    unnamed = not known.keys() & options.keys() and any(_needed(p) for k, p in parameters.items() if k not in options)
    seed = int(torch.randint(0, 2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = function(*known.values() if unnamed else (), **options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def takes_width(name: str) -> bool:
    """Whether `width` says how large a network of this name is: a user's function may lack it, a folder's model does.

    >>> takes_width("mlp"), takes_width("torch.nn:Identity")
    (True, False)
    """
    return "width" in _parameters(find_function(name)) if is_function_name(name) else not is_pretrained(name)


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Refuse several widths of a network that has none.

    Raises:
        ValueError: naming it.
    """
    if len(set(widths)) > 1 and not takes_width(name):
        raise ValueError(
            f"{name} takes no width, so widths {', '.join(map(str, widths))} would all be one network: give the "
            "function a parameter `width`, or give one width"
        )


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def _needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )
