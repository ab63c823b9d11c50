"""Weights from files: safetensors, sparse ones too, or what torch.load reads without running code."""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nucleate.compact.files import is_sparse, load_sparse

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Files that hold weights; all but the first are read by torch.load(weights_only=True)."""
CHECKPOINT = (b"PK", b"\x80")
"""What torch.save begins a file with: an archive, in earlier versions a pickle."""

COUNTER = "n_averaged"
"""What an AveragedModel holds beside the model inside."""
WRAPPED = ("module", "_orig_mod")
"""What wrappers call the model inside: DataParallel and AveragedModel, torch.compile."""


def checkpoints(path: str | Path) -> list[Path]:
    """The file itself, or a folder's weight files in natural order (epoch-2 before epoch-10).

    Raises:
        ValueError: if there is no such file, or none in the folder.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"there is no file or folder of weights {path}")
    found = sorted((p for p in path.iterdir() if p.suffix in SUFFIXES), key=_natural)
    if not found:
        raise ValueError(f"the folder {path} holds no weights ({', '.join(SUFFIXES)})")
    return found


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name. A checkpoint that holds its weights under "state_dict" or "model" is looked into.

    Raises:
        ValueError: for a file that cannot be read as weights, or holds none.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a file of weights: its name must end in {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors" and is_sparse(path):
        return load_sparse(path)
    content = _content(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state_dict: save model.state_dict()")
    return {str(name): value for name, value in content.items()}


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a file of weights into a model; every tensor must be there and fit.

    Names that wrappers add ("module.", "_orig_mod.") make no difference.

    Raises:
        ValueError: naming what is missing, what is too much or what has another shape.
    """
    own = model.state_dict()
    found = _under_own_names(read_weights(path), own)
    missing = [name for name in own if name not in found]
    extra = [name for name in found if name not in own]
    if missing or extra:
        what = f"{len(missing)} of the model's tensors are not in {path}, as {missing[0]!r}" if missing else ""
        if extra:
            near = difflib.get_close_matches(extra[0], own, n=1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            what += f"{'; ' if what else ''}{len(extra)} of the file's are not in the model, as {extra[0]!r}{hint}"
        raise ValueError(f"the weights do not fit {type(model).__name__}: {what}")
    for name, value in found.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"the weights do not fit {type(model).__name__}: {name!r} is {tuple(value.shape)} in {path}, "
                f"{tuple(own[name].shape)} in the model"
            )
    model.load_state_dict(found)
    return model


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(CHECKPOINT):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read the weights {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors, which only running its code could read: save model.state_dict() instead"
        ) from None
    # Damaged bytes make a reader raise anything.
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is damaged or no file of weights: {type(error).__name__}: {told}") from None
    raise ValueError(f"{path} is damaged or no file of weights: it begins with {start!r}; save model.state_dict()")


def _under_own_names(found: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors by the model's names, whichever of the two a wrapper has added to."""
    if found.keys() == own.keys():
        return found
    found = {name: value for name, value in found.items() if name != COUNTER or name in own}
    inside = {_plain(name): name for name in own}
    renamed = {inside.get(_plain(name), name): value for name, value in found.items()}
    return renamed if len(renamed) == len(found) else found


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
