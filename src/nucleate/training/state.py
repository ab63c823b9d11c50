"""The full state of a training as bytes: weights, buffers, optimizer. safetensors: data, never code."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, **notes: Any) -> bytes:
    """Serialise a model, its optimizer and JSON-able notes."""
    tensors: dict[str, Tensor] = {f"model.{k}": v.detach().cpu() for k, v in model.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optim.{index}.{key}"] = value.detach().cpu()
            else:
                scalars[f"{index}.{key}"] = value
    tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
    header = json.dumps({"scalars": scalars, "notes": notes})
    return len(header.encode()).to_bytes(8, "little") + header.encode() + save(tensors)


def unpack(state: bytes, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load what `pack` made into a model and an optimizer of the same shape; the notes come back."""
    size = int.from_bytes(state[:8], "little")
    header = json.loads(state[8 : 8 + size])
    tensors = load(state[8 + size :])
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    entries: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optim."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = value
    for name, value in header["scalars"].items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": entries, "param_groups": current["param_groups"]})
    notes: dict[str, Any] = header["notes"]
    return notes
