"""From a spec to tensors: every source, every kind of path, and what a spec or a user's data can get wrong."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from loading import HERE, get
from nucleate.data import DataError, listing


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
