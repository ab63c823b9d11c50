"""Images and labels of parquet files in the Hugging Face layout."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from nucleate.data.dataset import DataError

IMAGES = ("img", "image")
LABELS = ("label", "fine_label", "labels")
COARSE = "coarse_label"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Decoded content of one split."""

    images: NDArray[np.uint8]
    """(N, channels, height, width), one channel if the images are grey."""
    labels: NDArray[np.int64]
    coarse: NDArray[np.int64] | None
    names: tuple[str, ...] | None
    """Class names, where the file carries them."""
    jpeg: bool
    """Whether the pixels went through lossy JPEG."""


def read_parquet(paths: Sequence[Path], *, label: str | None = None) -> Table:
    """Decoded images and labels of the shards of one split, in order.

    The image column is `img` or `image`, a struct with `bytes` or plain bytes of any file format that Pillow reads; the
    labels are `label` or `fine_label` (or the named column), the optional groups `coarse_label`.

    Raises:
        DataError: for a damaged file, a missing column, or images that cannot be decoded or differ in size.
    """
    shards = [_read_shard(path, label) for path in paths]
    encoded = [content for shard in shards for content in shard[0]]
    labels = np.concatenate([shard[1] for shard in shards])
    coarse = [shard[2] for shard in shards if shard[2] is not None]
    if not encoded:
        raise DataError(f"{paths[0]} has no rows")
    return Table(
        images=_decode(encoded, paths),
        labels=labels,
        coarse=np.concatenate(coarse) if len(coarse) == len(shards) else None,
        names=shards[0][3],
        jpeg=encoded[0][:2] == b"\xff\xd8",
    )


def parquet_rows(paths: Sequence[Path]) -> int:
    """Number of rows, from the footers only.

    Raises:
        DataError: for a damaged file.
    """
    try:
        return sum(pq.read_metadata(path).num_rows for path in paths)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_damaged(paths[0], error)) from None


def _read_shard(
    path: Path, label: str | None
) -> tuple[list[bytes], NDArray[np.int64], NDArray[np.int64] | None, tuple[str, ...] | None]:
    try:
        schema = pq.read_schema(path)
        image_column = _column(path, schema, IMAGES)
        label_column = _column(path, schema, (label,) if label else LABELS)
        wanted = [image_column, label_column] + ([COARSE] if COARSE in schema.names else [])
        table = pq.read_table(path, columns=wanted)
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(_damaged(path, error)) from None
    column = table.column(image_column).combine_chunks()
    if pa.types.is_struct(column.type):
        field = column.type.get_field_index("bytes")
        if field < 0:
            raise DataError(f"{path}: column {image_column!r} has no field `bytes`, only {column.type}")
        column = column.flatten()[field]
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(f"{path}: column {image_column!r} must hold encoded images as bytes, not {column.type}")
    if column.null_count:
        raise DataError(f"{path}: {column.null_count} rows have no image bytes in column {image_column!r}")
    coarse = _integers(path, table, COARSE) if COARSE in wanted else None
    return column.to_pylist(), _integers(path, table, label_column), coarse, _class_names(schema, label_column)


def _column(path: Path, schema: Any, names: Sequence[str]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DataError(f"{path} has no column {' or '.join(map(repr, names))}; its columns are {', '.join(schema.names)}")


def _integers(path: Path, table: Any, name: str) -> NDArray[np.int64]:
    column = table.column(name)
    if not pa.types.is_integer(column.type) or column.null_count:
        what = f"{column.null_count} rows without one" if column.null_count else str(column.type)
        raise DataError(f"{path}: column {name!r} must hold whole numbers, not {what}")
    values: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return values


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Names from the metadata that the Hugging Face libraries write; absent or odd metadata gives none."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _decode(encoded: list[bytes], paths: Sequence[Path]) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(encoded[0])) as first:
            mode = "L" if first.mode in ("1", "L") else "RGB"
            width, height = first.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{paths[0]}: the image of row 0 cannot be decoded: {error}") from None
    images = np.empty((len(encoded), height, width, len(mode)), dtype=np.uint8)

    # Threads gain nothing here: for small images most of the time is spent under the interpreter's lock.
    for row, content in enumerate(encoded):
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.size != (width, height):
                    raise DataError(
                        f"{paths[0]}: images differ in size: row {row} is {image.size[0]} x {image.size[1]}, "
                        f"row 0 is {width} x {height}"
                    )
                pixels = image if image.mode == mode else image.convert(mode)
                images[row] = np.asarray(pixels).reshape(height, width, len(mode))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{paths[0]}: the image of row {row} cannot be decoded: {error}") from None
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"cannot read {path} as parquet: {reason}"
