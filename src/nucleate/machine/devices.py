"""The devices of this computer, under the names that specs give them."""

from __future__ import annotations

import torch


def check_device(device: str, field: str) -> None:
    """Refuse a device that this computer lacks; `field` is where it was given.

    Raises:
        ValueError: naming the field and the devices that there are.

    >>> check_device("gpu", "--device")
    Traceback (most recent call last):
    ValueError: --device is 'gpu', but this computer has cpu...
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    there = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if device not in there:
        raise ValueError(f"{field} is {device!r}, but this computer has {', '.join(there)}")
