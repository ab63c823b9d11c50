"""From a spec to tensors: every source, every kind of path, and what a spec or a user's data can get wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nucleate.data import SOURCES, DataError, Dataset, data_root, listing, load
from nucleate.data.synthetic import SYNTHETIC
from nucleate.spec import DataSpec

HERE = ["digits", *SYNTHETIC]


def get(name: str, root: Path | None = None, **fields: object) -> Dataset:
    return load(DataSpec(name=name, **fields), root)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", HERE)
class TestEverySourceWithoutFiles:
    """One harness for every entry of the registry that needs no download."""

    def test_form(self, name: str) -> None:
        data = get(name)
        for inputs, labels in ((data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)):
            assert inputs.dtype == torch.float32 and inputs.is_contiguous()
            assert labels.dtype == torch.int64 and len(labels) == len(inputs)
            assert torch.equal(labels.unique(), torch.arange(data.num_classes))
            low, high = data.input_range
            assert low <= float(inputs.min()) and float(inputs.max()) <= high
        assert not data.corrupted.any()
        assert len(data.class_names) == len(set(data.class_names)) == data.num_classes

    def test_same_spec_same_bits_and_no_global_draw(self, name: str) -> None:
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        spec = {"train_size": 200, "label_noise": 0.2, "imbalance": 3.0, "seed": 5}
        assert get(name, **spec).digest == get(name, **spec).digest
        assert get(name, **spec).digest != get(name, **{**spec, "seed": 6}).digest
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002

    def test_sizes_are_balanced(self, name: str) -> None:
        data = get(name, train_size=163, test_size=97)
        for labels, size in ((data.train_labels, 163), (data.test_labels, 97)):
            counts = torch.bincount(labels, minlength=data.num_classes)
            assert int(counts.sum()) == size and int(counts.max() - counts.min()) <= 1

    def test_imbalance_is_for_training_only(self, name: str) -> None:
        data = get(name, imbalance=4.0)
        counts = torch.bincount(data.train_labels).tolist()
        assert counts[0] / counts[-1] == pytest.approx(4.0, rel=0.12)
        assert counts == sorted(counts, reverse=True)
        assert data.test_labels.bincount().tolist() == get(name).test_labels.bincount().tolist()

    def test_noise_moves_labels_and_nothing_else(self, name: str) -> None:
        clean, noisy = get(name), get(name, label_noise=0.25)
        assert int(noisy.corrupted.sum()) == int(0.25 * len(clean.train_labels) + 0.5)
        assert torch.equal(noisy.clean_train_labels, clean.train_labels)
        assert torch.equal(noisy.train_inputs, clean.train_inputs)
        assert torch.equal(noisy.test_labels, clean.test_labels)

    def test_bad_specs(self, name: str) -> None:
        for fields, says in (
            ({"label_noise": 1.5}, "label_noise"),
            ({"label_noise": -0.1}, "label_noise"),
            ({"imbalance": 0.5}, "imbalance"),
            ({"train_size": 0}, "train_size must be at least 1"),
            ({"test_size": -3}, "test_size must be at least 1"),
            ({"train_size": 1}, "empty"),
        ):
            with pytest.raises(DataError, match=says):
                get(name, **fields)


def test_digits_are_scikit_learns_split_once() -> None:
    from sklearn.datasets import load_digits

    data = get("digits")
    assert data.train_inputs.shape == (1438, 1, 8, 8) and data.test_inputs.shape == (359, 1, 8, 8)
    together = torch.cat([data.train_inputs, data.test_inputs]).flatten(1).mul(16)
    ours = sorted(map(tuple, together.round().int().tolist()))
    assert ours == sorted(map(tuple, load_digits().data.astype(int).tolist()))
    # The split does not move with the seed: a held-out digit is never trained on.
    assert torch.equal(get("digits", seed=9).test_inputs, data.test_inputs)
    with pytest.raises(DataError, match=r"train_size 1438.*asks for \d+ points of class \d, but there are 1\d\d"):
        get("digits", train_size=1438)


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


class TestUsersFunction:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        yield
        sys.modules.pop("my_data", None)

    def give(self, body: str, **fields: object) -> Dataset:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        Path("my_data.py").write_text(
            "import numpy as np, torch\nX = np.arange(40.).reshape(20, 2)\nY = np.arange(20) % 2\n\ndef make():\n"
            + lines
        )
        return get("my_data:make", **fields)

    @pytest.mark.parametrize(
        "body",
        [
            "return X, Y",
            "return torch.tensor(X, requires_grad=True), torch.tensor(Y)",
            "return X.tolist(), Y.tolist()",
            "return {'x': X, 'y': Y}",
            "return X[:16], Y[:16], X[16:], Y[16:]",
            "return dict(x_train=X[:16], y_train=Y[:16], x_test=X[16:], y_test=Y[16:])",
            "return X.astype('>f4'), Y.astype('>i2')",
        ],
    )
    def test_what_it_may_return(self, body: str) -> None:
        data = self.give(body)
        assert (len(data.train_labels), len(data.test_labels)) == (16, 4)
        assert data.train_inputs.dtype == torch.float32 and not data.train_inputs.requires_grad
        assert data.input_range == (0.0, 39.0)

    def test_a_dict_may_say_more(self) -> None:
        data = self.give(
            "return {'x': X, 'y': Y, 'class_names': ['left', 'right', 'none'], 'superclasses': [0, 0, 1],\n"
            "        'input_range': (-1, 50), 'name': 'mine'}"
        )
        assert data.class_names == ("left", "right", "none") and data.superclasses == (0, 0, 1)
        assert data.input_range == (-1.0, 50.0) and data.name == "mine"

    def test_a_data_set_passes_through(self) -> None:
        digest = get("blobs").digest
        body = "from nucleate.data import load\nfrom nucleate.spec import DataSpec\nreturn load(DataSpec(name='blobs'))"
        assert self.give(body).digest == digest

    def test_the_users_array_is_not_changed(self) -> None:
        self.give("return X, Y")
        array = np.arange(40.0, dtype=np.float32).reshape(20, 2)
        module = sys.modules["my_data"]
        module.make = lambda: (array, np.arange(20) % 2)  # type: ignore[attr-defined]
        data = get("my_data:make", label_noise=0.5)
        data.train_inputs.zero_()
        assert array[19, 1] == 39.0

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("return X", "returned ndarray; it must return"),
            ("return X, Y, X", "returned 3 values"),
            ("return None", "returned NoneType"),
            ("return {'x': X}", "unknown key 'x'|returned no"),
            ("return {'x': X, 'y': Y, 'extra': 1}", "unknown key 'extra'"),
            ("return {'x_train': X, 'y_train': Y, 'x_test': X}", "come together"),
            ("raise RuntimeError('no disk')", "failed: RuntimeError: no disk"),
            ("return X, Y[:-1]", "20 inputs but 19 labels"),
            ("return X, Y - 1", "labels hold -1; classes are numbered from 0"),
            ("return X, Y + 0.5", "must be whole numbers"),
            ("return X, np.stack([Y, Y], 1)", r"labels have shape \(20, 2\)"),
            ("return X, Y * 1000", "label 1000 with only 20 points"),
            ("return X, Y * 0", "at least two classes"),
            ("X[3, 1] = np.nan\nreturn X, Y", "NaN or infinite values in 1 points, first 3"),
            ("X[7, 0] = 1e60\nreturn X, Y", "NaN or infinite values in 1 points, first 7"),
            ("return X * 0, Y", "must vary"),
            ("return X[:, 0], Y", r"inputs have shape \(20,\)"),
            ("return X[:0], Y[:0]", "there is no value"),
            ("return X[:2], Y[:2]", "too few points"),
            ("return X[:, :0], Y", "there is no value"),
            ("return X * 1j, Y", "must be numbers, not complex"),
            ("return np.array([['a', 'b']] * 20), Y", "must be numbers, not <U1"),
            ("return [[1], [1, 2]], Y", "cannot be read as an array"),
            ("return X, Y, X[:, :1], Y", r"has shape \(2,\),.*a held-out one \(1,\)"),
            ("return {'x': X, 'y': Y, 'class_names': ['one']}", "label 1 but only 1 class names"),
            ("return {'x': X, 'y': Y, 'superclasses': [0]}", "1 superclasses for 2 classes"),
            ("return {'x': X, 'y': Y, 'input_range': 3}", "cannot be used"),
            ("return {'x': X, 'y': Y, 'input_range': (1, 0)}", "must vary"),
        ],
    )
    def test_what_it_may_not(self, body: str, says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            self.give(body)
        assert "my_data:make" in str(caught.value)

    def test_a_function_that_is_not_there(self) -> None:
        for name, says in (("no_module_x:f", "cannot import"), ("math:nothing", "has no 'nothing'")):
            with pytest.raises(DataError, match=says):
                get(name)
        Path("my_data.py").write_text("def broken(:\n")
        with pytest.raises(DataError, match="SyntaxError"):
            get("my_data:make")


@pytest.mark.data
@pytest.mark.skipif("NUCLEATE_DATA" not in os.environ, reason="needs a data root (NUCLEATE_DATA)")
@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_the_real_thing(name: str) -> None:
    row = next(row for row in listing() if row.name == name)
    if not row.found:
        pytest.skip(row.problem)
    data = get(name)
    assert (len(data.train_labels), len(data.test_labels)) == (row.train, row.test)
    assert len(data.test_labels.unique()) == data.num_classes == 10
    assert data.input_range == (0.0, 1.0) and float(data.train_inputs.max()) > 0.95
