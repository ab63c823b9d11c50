"""Data sets in folders: which one a name or a path is, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from loading import HERE, get
from nucleate.data import SOURCES, DataError, data_root, listing


class TestNamedFolders:
    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
    def test_idx(self, tmp_path: Path, write_idx: Callable[..., Path], folder: str, packed: bool) -> None:
        write_idx(folder, packed=packed)
        data = get("mnist", tmp_path)
        assert data.name == "MNIST" and data.train_inputs.shape == (12, 1, 6, 6) and data.num_classes == 10
        raw = np.random.default_rng(0).integers(0, 256, (12, 6, 6), dtype=np.uint8)
        torch.testing.assert_close(data.train_inputs[:, 0], torch.from_numpy(raw / 255).float(), rtol=0, atol=1e-7)
        assert data.input_range == (0.0, 1.0)

    @pytest.mark.parametrize("folder", ["fashion-mnist", "fashion", "FashionMNIST/raw"])
    def test_fashion_aliases(self, tmp_path: Path, write_idx: Callable[..., Path], folder: str) -> None:
        write_idx(folder)
        assert get("fashion", tmp_path).class_names[9] == "ankle boot"

    def test_the_variable_names_the_root_and_the_argument_wins(
        self, tmp_path: Path, write_idx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_idx("there/mnist")
        monkeypatch.setenv("NUCLEATE_DATA", str(tmp_path / "there"))
        assert len(get("mnist").train_labels) == 12
        with pytest.raises(DataError, match="elsewhere"):
            get("mnist", tmp_path / "elsewhere")
        monkeypatch.delenv("NUCLEATE_DATA")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert data_root() == tmp_path / "cache" / "nucleate" / "data"

    @pytest.mark.parametrize("name", ["mnist", "fashion"])
    def test_absent(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=f"nucleate data fetch {name}") as caught:
            get(name, tmp_path)
        assert str(tmp_path) in str(caught.value) and "NUCLEATE_DATA" in str(caught.value)

    def test_incomplete_or_mismatched_idx(self, tmp_path: Path, write_idx: Callable[..., Path]) -> None:
        place = write_idx()
        (place / "t10k-labels-idx1-ubyte.gz").rename(place / "kept")
        with pytest.raises(DataError, match="lacks the IDX files t10k-labels"):
            get("mnist", tmp_path)
        (place / "kept").unlink()
        (place / "train-labels-idx1-ubyte.gz").rename(place / "t10k-labels-idx1-ubyte.gz")
        other = write_idx("other", train=13)
        (other / "train-labels-idx1-ubyte.gz").rename(place / "train-labels-idx1-ubyte.gz")
        with pytest.raises(DataError, match="12 inputs but 13 labels"):
            get("mnist", tmp_path)

    def test_cifar10_parquet(
        self, tmp_path: Path, write_parquet: Callable[..., Path], images: Callable[..., np.ndarray]
    ) -> None:
        for form, title in (("PNG", "CIFAR-10"), ("JPEG", "CIFAR-10 (JPEG)")):
            root = tmp_path / form
            pixels = images(30, channels=3, size=32)
            write_parquet(root / "cifar10/train-00000-of-00002.parquet", pixels[:10], form=form)
            write_parquet(root / "cifar10/train-00001-of-00002.parquet", pixels[10:20], form=form)
            write_parquet(root / "cifar10/test.parquet", pixels[20:], form=form)
            data = get("cifar10", root)
            assert data.name == title and data.class_names[9] == "truck"
            assert data.train_inputs.shape == (20, 3, 32, 32) and data.test_inputs.shape == (10, 3, 32, 32)
            if form == "PNG":
                expected = torch.from_numpy(pixels[13].transpose(2, 0, 1) / 255).float()
                torch.testing.assert_close(data.train_inputs[13], expected, rtol=0, atol=1e-7)
        (tmp_path / "PNG/cifar10/test.parquet").unlink()
        with pytest.raises(DataError, match=r"no test\*\.parquet"):
            get("cifar10", tmp_path / "PNG")

    def test_cifar100_parquet_has_groups(
        self, tmp_path: Path, write_parquet: Callable[..., Path], images: Callable[..., np.ndarray]
    ) -> None:
        fine = np.arange(200) % 100
        columns = {"fine_label": fine, "coarse_label": fine // 5}
        names = [f"class {c}" for c in range(100)]
        for split in ("train", "test"):
            write_parquet(tmp_path / f"cifar100/{split}.parquet", images(200, channels=3), columns=columns, names=names)
        data = get("cifar100", tmp_path)
        assert data.superclasses == tuple(c // 5 for c in range(100)) and data.num_classes == 100
        columns["coarse_label"] = np.arange(200) % 7
        write_parquet(tmp_path / "cifar100/train.parquet", images(200, channels=3), columns=columns)
        with pytest.raises(DataError, match="each class has one group"):
            get("cifar100", tmp_path)

    def test_cifar_binary(self, tmp_path: Path, write_cifar_binary: Callable[..., Path]) -> None:
        write_cifar_binary(10)
        data = get("cifar10", tmp_path)
        assert data.name == "CIFAR-10" and len(data.train_labels) == 100 and len(data.test_labels) == 20
        place = write_cifar_binary(100)
        data = get("cifar100", tmp_path)
        assert data.num_classes == 100 and data.superclasses == tuple(c // 5 for c in range(100))
        (place / "fine_label_names.txt").write_text("\n".join(f"name{c}" for c in range(100)))
        assert get("cifar100", tmp_path).class_names[42] == "name42"
        (place / "test.bin").unlink()
        with pytest.raises(DataError, match="lacks test_batch"):
            get("cifar100", tmp_path)
        place.rename(tmp_path / "moved")
        (tmp_path / "cifar10").rename(tmp_path / "cifar100")
        with pytest.raises(DataError, match="binary files of CIFAR-10, not of cifar100"):
            get("cifar100", tmp_path)

    @pytest.mark.parametrize("folder", ["cifar10", "cifar-10-batches-py"])
    def test_pickles_are_never_opened(self, tmp_path: Path, folder: str) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data_batch_1").write_bytes(b"\x80\x03")
        with pytest.raises(DataError, match="pickle"):
            get("cifar10", tmp_path)
        with pytest.raises(DataError, match="pickle"):
            get(str(tmp_path / folder))

    def test_listing(
        self, tmp_path: Path, write_idx: Callable[..., Path], write_cifar_binary: Callable[..., Path]
    ) -> None:
        place = write_idx()
        write_cifar_binary(10)
        rows = {row.name: row for row in listing(tmp_path)}
        assert list(rows) == list(SOURCES)
        assert (rows["mnist"].train, rows["mnist"].test, rows["mnist"].kind, rows["mnist"].path) == (
            12,
            6,
            "idx",
            place,
        )
        assert rows["mnist"].size == sum(p.stat().st_size for p in place.iterdir())
        assert (rows["cifar10"].train, rows["cifar10"].test, rows["cifar10"].kind) == (100, 20, "binary")
        assert not rows["fashion"].found and "nucleate data fetch fashion" in rows["fashion"].problem
        for name in HERE:
            data = get(name)
            assert rows[name].found and (rows[name].train, rows[name].test) == (
                len(data.train_labels),
                len(data.test_labels),
            )
        (place / "train-images-idx3-ubyte.gz").write_bytes(b"no")
        broken = {row.name: row for row in listing(tmp_path)}["mnist"]
        assert broken.found and "not an IDX file" in broken.problem


class TestPaths:
    def test_idx_folder_of_any_name(self, tmp_path: Path, write_idx: Callable[..., Path]) -> None:
        data = get(str(write_idx("letters")))
        assert data.name == "letters" and data.class_names == ("0", "1", "2")

    def test_npz_with_and_without_a_split(self, tmp_path: Path) -> None:
        x, y = np.random.default_rng(0).random((50, 4)), np.arange(50) % 5
        np.savez(tmp_path / "a.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
        data = get(str(tmp_path / "a.npz"))
        assert len(data.train_labels) == 30 and data.input_range == (pytest.approx(x.min()), pytest.approx(x.max()))
        np.savez(tmp_path / "b.npz", x=x, y=y[:, None])
        data = get(str(tmp_path / "b.npz"))
        assert data.train_labels.bincount().tolist() == [8] * 5 and data.test_labels.bincount().tolist() == [2] * 5
        rows = torch.cat([data.train_inputs, data.test_inputs])
        np.testing.assert_allclose(np.sort(rows[:, 0].numpy()), np.sort(x[:, 0]), rtol=1e-6)
        np.savez(tmp_path / "c.npz", images=x)
        with pytest.raises(DataError, match="holds images; it must hold x_train"):
            get(str(tmp_path / "c.npz"))

    def test_parquet_file_and_folder(
        self, tmp_path: Path, write_parquet: Callable[..., Path], images: Callable[..., np.ndarray]
    ) -> None:
        pixels = images(40)
        alone = write_parquet(tmp_path / "alone.parquet", pixels, names=[f"n{i}" for i in range(10)])
        data = get(str(alone))
        assert len(data.test_labels) == 10 and data.class_names[3] == "n3"
        write_parquet(tmp_path / "set/data/train-0.parquet", pixels)
        write_parquet(tmp_path / "set/data/test-0.parquet", pixels[:10])
        assert len(get(str(tmp_path / "set")).test_labels) == 10

    def test_images_with_channels_last_are_turned(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 9, 3), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(20) % 2)
        assert get(str(tmp_path / "a.npz")).input_shape == (3, 8, 9)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("mnits", "did you mean mnist"),
            ("zzz", "There are digits, blobs"),
            ("nowhere/at/all", "there is no file or folder"),
            ("absent.npz", "there is no file or folder"),
        ],
    )
    def test_no_such_source(self, name: str, says: str) -> None:
        with pytest.raises(DataError, match=says):
            get(name)

    def test_other_files_and_folders(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("1,2")
        with pytest.raises(DataError, match=r"neither a folder nor an \.npz"):
            get(str(tmp_path / "a.csv"))
        with pytest.raises(DataError, match="holds no data that is known"):
            get(str(tmp_path))

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
    def test_unreadable_folder(self, tmp_path: Path) -> None:
        (tmp_path / "mnist").mkdir(mode=0o000)
        with pytest.raises(DataError, match="cannot read the folder"):
            get("mnist", tmp_path)
