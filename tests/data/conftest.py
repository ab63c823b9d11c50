"""Small data sets on disk, written by the tests themselves in each format that is read."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    code = IDX_CODES[array.dtype.str[1:]]
    head = struct.pack(">BBBB", 0, 0, code, array.ndim) + b"".join(struct.pack(">I", n) for n in array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def images(n: int, *, channels: int = 1, size: int = 6, seed: int = 0) -> np.ndarray:
    shape = (n, size, size) if channels == 1 else (n, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def labels(n: int, classes: int = 3) -> np.ndarray:
    return (np.arange(n) % classes).astype(np.uint8)


@pytest.fixture
def write_idx(tmp_path: Path) -> Callable[..., Path]:
    def write(folder: str = "mnist", *, packed: bool = True, train: int = 12, test: int = 6) -> Path:
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
            for kind, array in (("images-idx3", images(n, seed=seed)), ("labels-idx1", labels(n))):
                content = idx_bytes(array)
                name = f"{part}-{kind}-ubyte" + (".gz" if packed else "")
                (place / name).write_bytes(gzip.compress(content) if packed else content)
        return place

    return write


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, quality=95) if form == "JPEG" else Image.fromarray(pixels).save(
        buffer, form
    )
    return buffer.getvalue()


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    def write(
        path: Path,
        pixels: np.ndarray,
        *,
        form: str = "PNG",
        columns: dict[str, Any] | None = None,
        image: str | None = "img",
        names: list[str] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        data: dict[str, Any] = {}
        if image is not None:
            data[image] = [{"bytes": encoded(p, form), "path": None} for p in pixels]
        data.update({"label": labels(len(pixels), 10).astype(np.int64)} if columns is None else columns)
        table = pa.table(data)
        if names is not None:
            features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture
def write_cifar_binary(tmp_path: Path) -> Callable[..., Path]:
    def write(kind: int = 10, *, per_file: int = 20) -> Path:
        place = tmp_path / f"cifar{kind}"
        place.mkdir()
        rng = np.random.default_rng(0)
        names = (
            [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
            if kind == 10
            else ["train.bin", "test.bin"]
        )
        for name in names:
            n = per_file if kind == 10 else 200
            pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
            fine = (np.arange(n) % kind).astype(np.uint8)[:, None]
            head = fine if kind == 10 else np.concatenate([fine // 5, fine], axis=1)
            (place / name).write_bytes(np.concatenate([head, pixels], axis=1).tobytes())
        return place

    return write


@pytest.fixture(name="idx_bytes")
def idx_bytes_() -> Callable[[np.ndarray], bytes]:
    return idx_bytes


@pytest.fixture(name="encoded")
def encoded_() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(name="images")
def images_() -> Callable[..., np.ndarray]:
    return images
