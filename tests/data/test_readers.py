"""Every format is read to the value; every damaged file gives one `DataError` that names it."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nucleate.data import DataError
from nucleate.data.parquet import parquet_rows, read_parquet
from nucleate.data.readers import idx_shape, read_cifar_binary, read_idx, read_npz

IdxBytes = Callable[[np.ndarray], bytes]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_round_trip(tmp_path: Path, idx_bytes: IdxBytes, dtype: str, packed: bool) -> None:
    array = (np.arange(24).reshape(2, 3, 4) - 5).astype(dtype)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    read = read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    assert idx_shape(path) == (2, 3, 4)


def damaged_idx(idx_bytes: IdxBytes) -> dict[str, tuple[bytes, str]]:
    good = idx_bytes(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    packed = gzip.compress(good)
    huge = struct.pack(">BBBBII", 0, 0, 8, 2, 2**32 - 1, 2**32 - 1)
    return {
        "empty": (b"", "not an IDX file: it starts with nothing"),
        "text": (b"<html>not found</html>", "not an IDX file: it starts with 3c 68"),
        "unknown type": (b"\0\0\x07\x01" + good[4:], "not an IDX file"),
        "no axes": (b"\0\0\x08\x00", "not an IDX file"),
        "cut header": (good[:9], "cut off inside its IDX header"),
        "cut values": (good[:-7], "promises 60 bytes of values.*has 53"),
        "trailing": (good + b"xx", "promises 60 bytes of values.*has 62"),
        "huge shape": (huge, "promises 18,446,744,065,119,617,025 bytes"),
        "cut gzip": (packed[:-9], "damaged gzip"),
        "cut gzip header": (packed[:6], "damaged gzip"),
        "flipped gzip": (packed[:15] + b"\xff\xff\xff" + packed[18:], "damaged gzip"),
        "gzip checksum": (packed[:-8] + b"\0\0\0\0" + packed[-4:], "damaged gzip"),
        "gzip trailing": (packed + b"garbage", "damaged gzip"),
    }


CASES = list(damaged_idx(lambda array: b"\0" * 72))


@pytest.mark.parametrize("case", CASES)
def test_damaged_idx(tmp_path: Path, idx_bytes: IdxBytes, case: str) -> None:
    content, says = damaged_idx(idx_bytes)[case]
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(content=st.binary(max_size=60), packed=st.booleans())
def test_any_bytes_are_an_array_or_an_error(tmp_path: Path, content: bytes, packed: bool) -> None:
    for head in (b"", b"\0\0\x08\x01", b"\x1f\x8b\x08\0"):
        path = tmp_path / "any"
        path.write_bytes(gzip.compress(head + content) if packed else head + content)
        for reader in (read_idx, idx_shape):
            try:
                reader(path)
            except DataError as error:
                assert str(path) in str(error)


def test_a_missing_file_and_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "absent")
    for reader in (read_idx, idx_shape, read_npz):
        with pytest.raises(DataError, match="directory"):
            reader(tmp_path)


def test_cifar_binary_layout(tmp_path: Path) -> None:
    planes = np.arange(3 * 3072, dtype=np.int64).reshape(3, 3072) % 251
    ten = np.concatenate([[[7], [0], [9]], planes], axis=1).astype(np.uint8)
    (tmp_path / "a.bin").write_bytes(ten[:2].tobytes())
    (tmp_path / "b.bin").write_bytes(ten[2:].tobytes())
    images, labels, coarse = read_cifar_binary([tmp_path / "a.bin", tmp_path / "b.bin"], fine=False)
    assert labels.tolist() == [7, 0, 9] and coarse is None
    # Red, green and blue planes, row by row.
    assert images.shape == (3, 3, 32, 32)
    assert images[1, 2, 3, 4] == planes[1, 2 * 1024 + 3 * 32 + 4]
    hundred = np.concatenate([[[19, 99], [0, 1], [3, 4]], planes], axis=1).astype(np.uint8)
    (tmp_path / "c.bin").write_bytes(hundred.tobytes())
    _, labels, coarse = read_cifar_binary([tmp_path / "c.bin"], fine=True)
    assert labels.tolist() == [99, 1, 4] and coarse is not None and coarse.tolist() == [19, 0, 3]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (bytes(3072), "3,072 bytes, not a multiple of 3,073"),
        (bytes([10]) + bytes(3072), "label 10, but there are 10 classes"),
    ],
)
def test_damaged_cifar_binary(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_cifar_binary([tmp_path / "data_batch_1.bin"], fine=False)


def test_npz_refuses_objects_and_damage(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez_compressed(good, x=np.arange(300.0), y=np.arange(3))
    assert read_npz(good)["x"].tolist() == list(np.arange(300.0))
    content = good.read_bytes()
    cases = {
        "objects": (None, "Python objects"),
        "single": (None, "single array"),
        "cut": (content[:-30], "as .npz"),
        "empty": (b"", "as .npz"),
        "text": (b"hello", "as .npz"),
        "flipped": (content[:70] + b"\xff" * 20 + content[90:], "as .npz"),
    }
    for name, (damaged, says) in cases.items():
        path = tmp_path / f"{name}.npz"
        if name == "objects":
            np.savez(path, x=np.array([{}, []], dtype=object))
        elif name == "single":
            with path.open("wb") as file:
                np.save(file, np.arange(3))
        else:
            assert damaged is not None
            path.write_bytes(damaged)
        with pytest.raises(DataError, match=says) as caught:
            read_npz(path)
        assert str(path) in str(caught.value)


class TestParquet:
    def test_pixels_are_exact_and_shards_keep_their_order(
        self, tmp_path: Path, write_parquet: Callable[..., Path], images: Callable[..., np.ndarray]
    ) -> None:
        pixels = images(2500, channels=3, size=4)
        first = write_parquet(tmp_path / "train-00000.parquet", pixels[:1300])
        second = write_parquet(tmp_path / "train-00001.parquet", pixels[1300:])
        table = read_parquet([first, second])
        np.testing.assert_array_equal(table.images, pixels.transpose(0, 3, 1, 2))
        assert table.labels.tolist() == [i % 10 for i in range(1300)] + [i % 10 for i in range(1200)]
        assert not table.jpeg and table.coarse is None and table.names is None
        assert parquet_rows([first, second]) == 2500

    def test_names_grey_images_plain_bytes_and_jpeg(
        self,
        tmp_path: Path,
        write_parquet: Callable[..., Path],
        images: Callable[..., np.ndarray],
        encoded: Callable[..., bytes],
    ) -> None:
        grey = images(4)
        path = write_parquet(tmp_path / "a.parquet", grey, names=["a", "b"], image="image")
        table = read_parquet([path])
        np.testing.assert_array_equal(table.images, grey[:, None])
        assert table.names == ("a", "b")
        colour = images(3, channels=3, size=16)
        columns = {"img": [encoded(p, "JPEG") for p in colour], "fine_label": [0, 1, 2], "coarse_label": [0, 0, 1]}
        jpeg = read_parquet([write_parquet(tmp_path / "b.parquet", colour, image=None, columns=columns)])
        assert jpeg.jpeg and jpeg.images.shape == (3, 3, 16, 16)
        assert jpeg.coarse is not None and jpeg.coarse.tolist() == [0, 0, 1]

    @pytest.mark.parametrize(
        ("columns", "image", "says"),
        [
            ({"other": [1, 2]}, "img", "no column 'label'.*its columns are img, other"),
            (None, None, "no column 'img' or 'image'"),
            ({"label": ["a", "b"]}, "img", "must hold whole numbers, not string"),
            ({"label": [0.0, 1.0]}, "img", "must hold whole numbers, not double"),
            ({"label": [0, None]}, "img", "1 rows without one"),
            ({"label": [0, 1], "img": [1, 2]}, None, "must hold encoded images as bytes, not int64"),
            ({"label": [0, 1], "img": [{"path": "a"}, {"path": "b"}]}, None, "no field `bytes`"),
            ({"label": [0, 1], "img": [None, b"x"]}, None, "1 rows have no image bytes"),
            ({"label": [0, 1], "img": [{"bytes": b"x"}, None]}, None, "1 rows have no image bytes"),
            ({"label": [0, 1], "img": [b"no", b"image"]}, None, "row 0 cannot be decoded"),
        ],
    )
    def test_wrong_columns(
        self,
        tmp_path: Path,
        write_parquet: Callable[..., Path],
        images: Callable[..., np.ndarray],
        columns: dict[str, object],
        image: str | None,
        says: str,
    ) -> None:
        path = write_parquet(tmp_path / "train.parquet", images(2), columns=columns, image=image)
        with pytest.raises(DataError, match=says) as caught:
            read_parquet([path])
        assert str(path) in str(caught.value)

    def test_images_that_differ_or_break_off(
        self,
        tmp_path: Path,
        write_parquet: Callable[..., Path],
        images: Callable[..., np.ndarray],
        encoded: Callable[..., bytes],
    ) -> None:
        whole = encoded(images(1, size=30)[0])
        for second, says in (
            (encoded(images(1, size=7)[0]), "differ in size: row 1 is 7 x 7, row 0 is 30 x 30"),
            (whole[: len(whole) // 2], "row 1 cannot be decoded"),
        ):
            columns = {"img": [whole, second], "label": [0, 1]}
            path = write_parquet(tmp_path / "a.parquet", images(2), columns=columns, image=None)
            with pytest.raises(DataError, match=says):
                read_parquet([path])

    def test_damaged_files(
        self, tmp_path: Path, write_parquet: Callable[..., Path], images: Callable[..., np.ndarray]
    ) -> None:
        content = write_parquet(tmp_path / "good.parquet", images(50, size=16)).read_bytes()
        middle = len(content) // 3
        for damaged in (
            b"",
            b"PAR1",
            content[:-20],
            content[20:],
            content[:middle] + bytes(200) + content[middle + 200 :],
        ):
            path = tmp_path / "train.parquet"
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"train\.parquet") as caught:
                read_parquet([path])
            assert "\n" not in str(caught.value)
        (tmp_path / "train.parquet").write_bytes(content[:-20])
        with pytest.raises(DataError, match="as parquet"):
            parquet_rows([tmp_path / "train.parquet"])

    def test_no_rows(
        self, tmp_path: Path, write_parquet: Callable[..., Path], images: Callable[..., np.ndarray]
    ) -> None:
        columns = {"img": np.array([], dtype=object), "label": np.array([], dtype=np.int64)}
        path = write_parquet(tmp_path / "a.parquet", images(1), image=None, columns=columns)
        with pytest.raises(DataError):
            read_parquet([path])
