"""Multiply-adds of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nucleate.probes.tap import evaluating, unwrap

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds for one point of every linear map and convolution, by the name of its weight.

    A linear map costs inputs x outputs at each position, a convolution its kernel's weights at each output position;
    biases, norms and activations are not counted. A layer that runs twice counts twice.

    Args:
        model: any module; it runs once in eval mode and is left as it was.
        example: inputs of a batch of one point or more; its first axis counts the points.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 5 * 5, 2))
    >>> layer_macs(net, torch.zeros(1, 1, 5, 5))
    {'0.weight': 900, '2.weight': 200}
    """
    plain = unwrap(model)
    found: dict[str, int] = {}
    handles = []

    def count(name: str, module: nn.Module, out: Tensor) -> None:
        positions = out[0, 0].numel() if isinstance(module, CONVS) else out[0].numel() // out.shape[-1]
        weight = module.weight
        assert isinstance(weight, Tensor)
        found[name] = found.get(name, 0) + positions * weight.numel()

    try:
        for name, module in plain.named_modules():
            # The linear map of GPT-2 is a class of transformers, which need not be there.
            if isinstance(module, (nn.Linear, *CONVS)) or type(module).__name__ == "Conv1D":
                key = f"{name}.weight" if name else "weight"
                handles.append(module.register_forward_hook(lambda m, args, out, key=key: count(key, m, out)))
        with evaluating(plain):
            plain(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def remaining_macs(macs: Mapping[str, int], densities: Mapping[str, float]) -> float:
    """Multiply-adds that are left when each layer keeps its share of weights; layers without a share keep all.

    >>> remaining_macs({"a": 100, "b": 10}, {"a": 0.1})
    20.0
    """
    return sum(count * densities.get(name, 1.0) for name, count in macs.items())
