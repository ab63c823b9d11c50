from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleate.geometry.neighbours import chi, layer_overlap, neighbour_hit, neighbour_search, overlap


def test_chance_is_what_independent_labels_read():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 5
    result = chi(torch.randn(3000, 10, generator=g), labels, 7)
    assert result.chance == pytest.approx(599 / 2999)
    assert result.value == pytest.approx(result.chance, abs=5 * result.stderr)
    assert result.low < result.chance < result.high


def test_matches_its_definition_in_loops():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 4, (80,), generator=g)
    shares = []
    for i in range(80):
        distances = (x - x[i]).norm(dim=1)
        distances[i] = math.inf
        shares.append((labels[distances.argsort()[:6]] == labels[i]).double().mean())
    shares = torch.stack(shares)
    result = chi(x, labels, 6)
    assert result.value == pytest.approx(float(shares.mean()))
    assert result.stderr == pytest.approx(float(shares.std(correction=0)) / math.sqrt(80))
    by_class = torch.stack([shares[labels == c].mean() for c in range(4)]).mean()
    assert chi(x, labels, 6, weights="class").value == pytest.approx(float(by_class))
    assert neighbour_hit(x, labels, 6) == result.value


def test_collapse_reads_one_up_to_the_ceiling():
    labels = torch.arange(60) % 10
    x = torch.eye(10)[labels] + 1e-3 * torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    assert chi(x, labels, 5).value == 1.0
    result = chi(x, labels, 8)
    assert result.value == pytest.approx(5 / 8)
    assert result.ceiling == pytest.approx(5 / 8)


def test_exact_collapse_is_marked_as_tied():
    labels = torch.arange(200) % 10
    result = chi(torch.eye(10)[labels], labels, 5)
    assert (result.value, result.tied) == (1.0, 1.0)
    assert result.low < 1.0
    spread = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    assert chi(spread, labels, 5).tied == 0.0


def test_imbalance_by_class_weights_and_by_class_fraction():
    g = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.zeros(400), torch.ones(20)]).long()
    x = torch.randn(420, 4, generator=g)
    alike = chi(x, labels, 5)
    by_class = chi(x, labels, 5, weights="class")
    assert alike.value > 0.85
    assert by_class.chance == pytest.approx((399 / 419 + 19 / 419) / 2)
    assert by_class.value == pytest.approx(by_class.chance, abs=0.1)
    assert by_class.high - by_class.low > alike.high - alike.low
    share = chi(x, labels, 0.1)
    one, two = chi(x, labels, 40), chi(x, labels, 2)
    rows = neighbour_search(x, 40)
    large = float((labels[rows.indices[:400]] == 0).double().mean())
    small = float((labels[rows.indices[400:, :2]] == 1).double().mean())
    assert share.value == pytest.approx((400 * large + 20 * small) / 420)
    assert one.k == 40 and two.k == 2 and share.k == 0.1


def test_neighbours_that_are_there_are_used_again():
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randint(0, 3, (90, 3), generator=g).float(), torch.arange(90) % 3
    found = neighbour_search(x, 9)
    for k in (1, 5, 9):
        assert chi(x, labels, k, found=found) == chi(x, labels, k)


@given(seed=st.integers(0, 1000), n=st.integers(4, 60), k=st.integers(1, 3), classes=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_laws(seed, n, k, classes):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=g)
    result = chi(x, labels, k)
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.value <= result.ceiling + 1e-12
    assert result.value == pytest.approx(neighbour_hit(2 * x.flip(1) + 1, (labels + 3) * 7, k))
    order = torch.randperm(n, generator=g)
    assert result.value == pytest.approx(neighbour_hit(x[order], labels[order], k))


def test_overlap_with_itself_with_noise_and_at_collapse():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=g)
    a, b = neighbour_search(x, 10), neighbour_search(torch.randn(500, 6, generator=g), 10)
    assert overlap(a.indices, a.indices.flip(1)) == 1.0
    result = layer_overlap(a, b)
    assert result.chance == pytest.approx(10 / 499)
    assert result.value == pytest.approx(result.chance, abs=5 * result.stderr)
    assert result.value == overlap(a.indices, b.indices)
    labels = torch.arange(500) % 5
    tied = neighbour_search(torch.eye(5)[labels], 10)
    assert layer_overlap(tied, a).tied == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: chi(x, y[:-1]), "one label for each"),
        (lambda x, y: chi(x, y, 10), "k must be 1..9"),
        (lambda x, y: chi(x, y, 1.5), "fractional k"),
        (lambda x, y: chi(x, y, weights="inverse"), "weights must be"),
        (lambda x, y: chi(x, y, 4, found=neighbour_search(x, 3)), "4 or more"),
        (lambda x, y: overlap(torch.zeros(3, 2), torch.zeros(3, 1)), "same"),
        (lambda x, y: chi(x / 0, y), "NaN or infinity"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2)
