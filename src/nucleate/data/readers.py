"""Files -> arrays: IDX, CIFAR's binary records, `.npz`. Nothing here runs code from a file.

Every file that is not what it should be gives one `DataError` that names the file and what is wrong with it.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucleate.data.dataset import DataError

Array = NDArray[Any]

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_bytes(path: Path) -> bytes:
    """Content of a file, unpacked if it is gzip (decided by its first bytes, not its name).

    Raises:
        DataError: if it cannot be read or the gzip stream is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}); fetch it again") from None


def read_idx(path: Path) -> Array:
    """Array of an IDX file, gzip or not, in the machine's byte order.

    Two zero bytes, a type byte, the number of axes, the axes as big-endian uint32, the values (LeCun, Cortes, Burges).

    Raises:
        DataError: for a bad magic number, or fewer or more bytes than the header promises.
    """
    content = read_bytes(path)
    shape, dtype = idx_header(content, path)
    start = 4 + 4 * len(shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise DataError(
            f"{path} promises {expected:,} bytes of values (shape {shape}) but has {len(content) - start:,}; "
            "the file is cut off or damaged"
        )
    values = np.frombuffer(content, dtype=dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def idx_header(content: bytes, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that the first bytes of an IDX file promise.

    Raises:
        DataError: if they are no IDX header.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or not 1 <= content[3] <= 8:
        raise DataError(f"{path} is not an IDX file: it starts with {content[:4].hex(' ') or 'nothing'}")
    axes = content[3]
    if len(content) < 4 + 4 * axes:
        raise DataError(f"{path} is cut off inside its IDX header")
    shape = tuple(int.from_bytes(content[4 + 4 * a : 8 + 4 * a], "big") for a in range(axes))
    return shape, np.dtype(_IDX_TYPES[content[2]])


def idx_shape(path: Path) -> tuple[int, ...]:
    """Shape of an IDX file, read from its first bytes only.

    Raises:
        DataError: as `read_idx`.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4 + 4 * 8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    return idx_header(head, path)[0]


def read_cifar_binary(paths: list[Path], *, fine: bool) -> tuple[Array, Array, Array | None]:
    """Images (N, 3, 32, 32) uint8, labels (N,) and, with `fine` (CIFAR-100), coarse labels (N,) of binary records.

    A record is a label byte (CIFAR-100: the coarse, then the fine one) and 3,072 pixels, red, green, blue planes.

    Raises:
        DataError: if a file is not a whole number of records, or a label is out of range.
    """
    head = 2 if fine else 1
    record = head + 3072
    parts = []
    for path in paths:
        content = read_bytes(path)
        if not content or len(content) % record:
            raise DataError(f"{path} holds {len(content):,} bytes, not a multiple of {record:,}: cut off or damaged")
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
        for column, classes in enumerate((20, 100) if fine else (10,)):
            if rows[:, column].max() >= classes:
                raise DataError(f"{path} has label {rows[:, column].max()}, but there are {classes} classes: damaged?")
        parts.append(rows)
    rows = np.concatenate(parts)
    images = rows[:, head:].reshape(-1, 3, 32, 32)
    return images, rows[:, head - 1].astype(np.int64), rows[:, 0].astype(np.int64) if fine else None


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays of an `.npz` file by name; arrays of Python objects are refused.

    Raises:
        DataError: if it cannot be read, is damaged, or holds objects (which only a pickle can carry).
    """
    try:
        # numpy leaves a file open that it opened itself and found damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array; save named ones with numpy.savez(path, x_train=..., ...)")
            with archive:
                return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        MemoryError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in reason:
            reason = "it is another kind of file, or holds Python objects, which are never opened"
        raise DataError(f"cannot read {path} as .npz: {reason}") from None
