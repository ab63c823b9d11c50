"""Exact counts of flipped labels and kept points, decided by the generator alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from nucleate.data import DataError
from nucleate.data.noise import KINDS, class_counts, flip_labels, stratified_split, subset


def gen(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def flip(labels: Tensor, share: float, kind: str, classes: int = 10, seed: int = 0) -> Tensor:
    return flip_labels(labels, share, num_classes=classes, generator=gen(seed), kind=kind)


@given(
    n=st.integers(0, 60),
    classes=st.integers(2, 7),
    share=st.floats(0, 1),
    kind=st.sampled_from(["symmetric", "asymmetric"]),
)
def test_the_count_is_exact_and_labels_stay_in_range(n: int, classes: int, share: float, kind: str) -> None:
    labels = torch.arange(n) % classes
    flipped = flip(labels, share, kind, classes)
    assert int((flipped != labels).sum()) == int(share * n + 0.5)
    assert torch.equal(labels, torch.arange(n) % classes)
    assert n == 0 or (int(flipped.min()) >= 0 and int(flipped.max()) < classes)


def test_asymmetric_noise_goes_to_the_next_class() -> None:
    labels = torch.arange(10).repeat(20)
    flipped = flip(labels, 0.4, "asymmetric")
    moved = flipped != labels
    assert torch.equal(flipped[moved], (labels[moved] + 1) % 10)
    assert 9 in labels[moved] and int(moved.sum()) == 80


def test_symmetric_noise_is_uniform_over_the_other_classes() -> None:
    flipped = flip(torch.zeros(90_000).long(), 1.0, "symmetric")
    counts = torch.bincount(flipped, minlength=10)
    assert counts[0] == 0
    # Binomial(90000, 1/9): standard deviation 94, five of them.
    assert (counts[1:] - 10_000).abs().max() < 470


def test_random_noise_keeps_a_tenth_of_ten_classes_by_chance() -> None:
    labels = torch.arange(10).repeat(5000)
    flipped = flip(labels, 1.0, "random")
    # Binomial(50000, 0.1): standard deviation 67.
    assert abs(int((flipped == labels).sum()) - 5000) < 335
    assert (torch.bincount(flipped) - 5000).abs().max() < 335


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_and_the_global_generator_does_not_move(kind: str) -> None:
    labels, before = torch.arange(10).repeat(10), torch.get_rng_state()
    assert torch.equal(flip(labels, 0.5, kind, seed=3), flip(labels, 0.5, kind, seed=3))
    assert not torch.equal(flip(labels, 0.5, kind, seed=3), flip(labels, 0.5, kind, seed=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan"), float("inf")])
def test_share_outside_the_unit_interval(share: float) -> None:
    with pytest.raises(DataError, match=r"label_noise.*\[0, 1\]"):
        flip(torch.zeros(4).long(), share, "symmetric")


def test_unknown_kind() -> None:
    with pytest.raises(DataError, match="symmetric, asymmetric, random"):
        flip(torch.zeros(4).long(), 0.5, "uniform")


def test_one_class_has_no_other() -> None:
    with pytest.raises(DataError, match="two classes"):
        flip(torch.zeros(4).long(), 0.5, "symmetric", classes=1)


@given(
    classes=st.integers(1, 12),
    each=st.integers(1, 200),
    share=st.floats(0.05, 1.0),
    imbalance=st.floats(1.0, 50.0),
)
def test_counts_add_up_and_fall_geometrically(classes: int, each: int, share: float, imbalance: float) -> None:
    size = max(1, int(share * each))
    weights = [imbalance ** (-c / max(classes - 1, 1)) for c in range(classes)]
    try:
        counts = class_counts([each] * classes, size, imbalance)
    except DataError:
        # Refused only where the smallest class's share comes out at nothing.
        assert size * weights[-1] / sum(weights) < 1
        return
    assert sum(counts) == size
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - size * weight / sum(weights)) < 1
    assert counts == sorted(counts, reverse=True)


def test_without_a_size_the_first_class_is_kept_whole() -> None:
    assert class_counts([1000] * 5, None, 16.0) == [1000, 500, 250, 125, 62]
    assert class_counts([10, 20, 30], None, 1.0) == [10, 20, 30]
    # The scarce last class limits all others.
    assert class_counts([1000, 1000, 10], None, 4.0) == [40, 20, 10]


@pytest.mark.parametrize(
    ("available", "size", "imbalance", "says"),
    [
        ([10, 10], 21, 1.0, r"train_size 21.*asks for 11 points of class 0.*there are 10"),
        ([10, 10], 1, 1.0, "leaves class 1 empty"),
        ([10, 10], 10, 0.5, "imbalance.*at least 1"),
        ([10, 10], 10, float("nan"), "imbalance"),
        ([10, 10], 10, float("inf"), "imbalance"),
        ([10, 10], None, 100.0, "leaves class 1 empty"),
        ([10, 0], None, 2.0, "empty"),
    ],
)
def test_counts_that_cannot_be(available: list[int], size: int | None, imbalance: float, says: str) -> None:
    with pytest.raises(DataError, match=says):
        class_counts(available, size, imbalance)


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    labels = torch.arange(5).repeat(40)
    large = subset(labels, [20] * 5, generator=gen())
    small = subset(labels, [7, 6, 5, 4, 3], generator=gen())
    assert set(small.tolist()) < set(large.tolist())
    assert torch.bincount(labels[small]).tolist() == [7, 6, 5, 4, 3]
    assert torch.equal(large, large.unique())


def test_the_split_is_a_partition_with_a_share_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 11)
    kept, held_out = stratified_split(labels, 0.2)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(81))
    assert torch.bincount(labels[held_out]).tolist() == [10, 4, 2]
