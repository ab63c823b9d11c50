"""Small files: one bit for every weight and the weights that are left, in safetensors; read back bit for bit."""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nucleate.probes.tap import unwrap

FORMAT = 1
"""Version of the file's layout, in its header."""

BITS, VALUES = ".bits", ".values"
"""Endings of a sparse tensor's two parts: packed little-endian bits, 1 where a value is stored; the values in order."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_UNSIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_sparse(
    model: nn.Module | Mapping[str, Tensor] | str | Path,
    path: str | Path,
    masks: Mapping[str, Tensor] | None = None,
    *,
    record: Mapping[str, Any] | None = None,
) -> int:
    """Write a pruned model as bitmask + values: about 1 + 32 d bits a float32 weight at density d.

    A tensor is stored sparse where that is smaller, else as it is. Tensors are read one at a time, twice, so a mapping
    that loads on demand, or a safetensors file, may be larger than memory. The file is complete or not there at all.

    Args:
        model: its state_dict is saved, under the names inside of a wrapped model; or a mapping from names to tensors,
            or the path of a safetensors file.
        path: the file to write.
        masks: 0 where a weight is pruned, by parameter name, of tied weights by any of theirs; pruned weights are read
            back as 0. Without them whatever is not 0 is kept; a pruned -0.0 is read back as 0.0.
        record: how it was pruned, for the header: anything that JSON holds.

    Returns:
        Bytes written.

    Raises:
        ValueError: for a mask that fits no tensor, masks of tied weights that differ, a record that is no JSON, a dtype
            that safetensors lacks, a value that is no tensor, a name that another tensor's part takes.

    >>> import tempfile
    >>> net = nn.Linear(1000, 100, bias=False)
    >>> mask = torch.zeros(100, 1000); mask[:, ::20] = 1
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save_sparse(net, Path(folder) / "net.safetensors", {"weight": mask})
    ...     back = load_sparse(Path(folder) / "net.safetensors")
    >>> size < 400_000 / 10, torch.equal(back["weight"], net.weight * mask)
    (True, True)
    """
    with _tensors(model) as tensors:
        aliases = _aliases(tensors)
        kept = _by_first_name(masks or {}, tensors, aliases)
        described: dict[str, Any] = {}
        header: dict[str, Any] = {"__metadata__": {}}
        offset = 0

        def place(name: str, dtype: str, shape: list[int], size: int) -> None:
            nonlocal offset
            if name in header:
                raise ValueError(f"the file would hold {name!r} twice: rename the tensor of that name")
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size

        for name in tensors:
            if name in aliases:
                continue
            tensor = _tensor(tensors, name)
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"safetensors has no dtype for {name!r}, {tensor.dtype}")
            parts = _parts(tensor, kept.get(name))
            crc = 0
            for part in parts:
                crc = zlib.crc32(part, crc)
            described[name] = {"crc32": crc}
            dtype, shape = _DTYPES[tensor.dtype], list(tensor.shape)
            if len(parts) == 1:
                place(name, dtype, shape, len(parts[0]))
                continue
            count = len(parts[1]) // tensor.element_size()
            described[name] |= {"shape": shape, "count": count}
            place(name + BITS, "U8", [len(parts[0])], len(parts[0]))
            place(name + VALUES, dtype, [count], len(parts[1]))
        meta = {"format": FORMAT, "tensors": described, "aliases": aliases, "record": dict(record or {})}
        try:
            header["__metadata__"] = {"nucleate": json.dumps(meta, allow_nan=False)}
        except (TypeError, ValueError) as error:
            raise ValueError(f"the record is no JSON: {error}") from error
        packed = json.dumps(header).encode()
        packed += b" " * (-len(packed) % 8)
        with _complete(Path(path)) as file:
            file.write(struct.pack("<Q", len(packed)))
            file.write(packed)
            for name in described:
                for part in _parts(_tensor(tensors, name), kept.get(name)):
                    file.write(part)
            return file.tell()


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """The plain state_dict of a file that `save_sparse` wrote: `model.load_state_dict(load_sparse(path))`.

    Raises:
        ValueError: if it is not such a file, or damaged.
    """
    return dict(read_sparse(path))


def read_sparse(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a sparse file, one at a time.

    Raises:
        ValueError: as `load_sparse`.
    """
    meta = _header(path)
    try:
        described, aliases = dict(meta["tensors"]), dict(meta["aliases"])
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            expected = {
                n for name, d in described.items() for n in ([name + BITS, name + VALUES] if "count" in d else [name])
            }
            if names != expected:
                raise ValueError(f"its header and its tensors disagree about {', '.join(sorted(names ^ expected)[:5])}")
            for name, about in described.items():
                tensor = _read(file, name, about)
                yield name, tensor
                for alias in (a for a, original in aliases.items() if original == name):
                    yield alias, tensor
    except (SafetensorError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def is_sparse(path: str | Path) -> bool:
    """Whether `save_sparse` wrote a file, of whatever version."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return "nucleate" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_record(path: str | Path) -> dict[str, Any]:
    """The pruning record of a sparse file.

    Raises:
        ValueError: as `load_sparse`.
    """
    record = _header(path).get("record", {})
    return dict(record) if isinstance(record, dict) else {}


def _header(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get("nucleate")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from error
    if text is None:
        raise ValueError(f"{path} was not written by save_sparse; read it with safetensors.torch.load_file")
    try:
        meta = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: its header is no JSON") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{path} has another format than {FORMAT}: a newer nucleate wrote it, or it is damaged")
    return meta


def _read(file: Any, name: str, about: Mapping[str, Any]) -> Tensor:
    if "count" not in about:
        whole: Tensor = file.get_tensor(name)
        _check(zlib.crc32(_bytes(whole)) == about["crc32"], name)
        return whole
    bits, values = file.get_tensor(name + BITS), file.get_tensor(name + VALUES)
    shape = [int(n) for n in about["shape"]]
    size = math.prod(shape)
    _check(min(shape, default=0) >= 0 and bits.dtype == torch.uint8 and bits.numel() == -(-size // 8), name)
    _check(values.dim() == 1 and values.numel() == about["count"], name)
    _check(zlib.crc32(_bytes(values), zlib.crc32(_bytes(bits))) == about["crc32"], name)
    unpacked = np.unpackbits(bits.numpy(), bitorder="little")
    _check(not unpacked[size:].any() and int(unpacked.sum(dtype=np.int64)) == about["count"], name)
    kept = torch.from_numpy(unpacked[:size]).bool()
    # Bit patterns are moved, not numbers, so that every dtype and every NaN is read back as it was.
    moved = torch.zeros(size, dtype=_UNSIGNED[values.element_size()])
    moved[kept] = values.view(moved.dtype)
    return moved.view(values.dtype).view(shape)


def _check(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"the bits of {name!r} are not those that were written")


def _parts(tensor: Tensor, mask: Tensor | None) -> list[memoryview]:
    """A tensor's bytes; or its packed bits and the bytes of its values where these are fewer."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    moved = flat.view(_UNSIGNED[flat.element_size()])
    # A negative weight times a mask of 0 is -0.0, which is as pruned as 0.0.
    size = torch.iinfo(moved.dtype).bits
    digits = moved & (2 ** (size - 1) - 1) if flat.is_floating_point() else moved
    kept = digits != 0 if mask is None else mask.cpu().reshape(-1) != 0
    count = int(kept.sum())
    if -(-len(flat) // 8) + count * flat.element_size() >= len(flat) * flat.element_size():
        return [_bytes(moved if mask is None else torch.where(kept, moved, torch.zeros_like(moved)))]
    return [np.packbits(kept.numpy(), bitorder="little").data, _bytes(moved[kept])]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tied tensors -> the first name of the same memory; a mapping that loads on demand has none."""
    if not isinstance(tensors, dict):
        return {}
    first: dict[tuple[Any, ...], str] = {}
    found: dict[str, str] = {}
    for name in tensors:
        t = _tensor(tensors, name)
        key = (t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
        if t.numel() and key in first:
            found[name] = first[key]
        first.setdefault(key, name)
    return found


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    value: object = tensors[name]
    if not isinstance(value, Tensor):
        raise ValueError(f"{name!r} is a {type(value).__name__}, not a tensor: give a state_dict without it")
    return value.detach()


def _by_first_name(
    masks: Mapping[str, Tensor], tensors: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> dict[str, Tensor]:
    """The masks, each under the name that its tensor is stored by."""
    found: dict[str, Tensor] = {}
    for name, mask in masks.items():
        if name not in tensors:
            raise ValueError(f"there is a mask for {name!r}, but no such tensor; there are {', '.join(tensors)}")
        shape = tuple(_tensor(tensors, name).shape)
        if mask.shape != shape:
            raise ValueError(f"the mask of {name!r} has shape {tuple(mask.shape)}, its tensor {shape}")
        first = aliases.get(name, name)
        if first in found and not torch.equal(found[first].cpu() != 0, mask.cpu() != 0):
            raise ValueError(f"{name!r} and {first!r} are one tensor, but their masks differ: give one mask")
        found[first] = mask
    return found


class _OnDemand(Mapping[str, Tensor]):
    """Tensors of an open safetensors file."""

    def __init__(self, file: Any) -> None:
        self.file, self.names = file, list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        tensor: Tensor = self.file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@contextmanager
def _tensors(model: nn.Module | Mapping[str, Tensor] | str | Path) -> Iterator[Mapping[str, Tensor]]:
    if isinstance(model, nn.Module):
        yield dict(unwrap(model).state_dict())
    elif isinstance(model, str | Path):
        if not Path(model).is_file():
            raise ValueError(f"there is no file {model}")
        try:
            file = safe_open(str(model), framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{model} is no safetensors file, or damaged: {error}") from error
        with file:
            yield _OnDemand(file)
    else:
        yield model


@contextmanager
def _complete(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name only once it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
