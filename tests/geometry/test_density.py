from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from nucleate.geometry.density import density_peaks
from nucleate.geometry.neighbours import neighbour_search


def blobs(classes: int, n: int, d: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes * n) % classes
    means = 10 * torch.linalg.qr(torch.randn(d, d, generator=g)).Q[:classes]
    return means[labels] + spread * torch.randn(classes * n, d, generator=g), labels


def test_separate_blobs_are_their_own_peaks():
    x, labels = blobs(6, 80, 8, 0.8)
    peaks = density_peaks(x, k=20)
    assert len(peaks.centres) == 6
    assert adjusted_rand_score(labels, peaks.labels) == 1.0
    assert torch.equal(peaks.labels[peaks.centres], torch.arange(6))
    assert torch.isnan(peaks.saddles).all()


def test_superclasses_appear_before_classes_when_only_they_are_apart():
    g = torch.Generator().manual_seed(0)
    fine = torch.arange(800) % 4
    coarse = fine // 2
    centres = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [9.0, 0, 0], [10.0, 0, 0]])
    early = centres[fine] + torch.randn(800, 3, generator=g)
    late = 6 * centres[fine] + torch.randn(800, 3, generator=g)
    found_early, found_late = density_peaks(early).labels, density_peaks(late).labels
    assert adjusted_rand_score(coarse, found_early) > 0.98
    assert adjusted_rand_score(fine, found_early) < 0.6
    assert adjusted_rand_score(fine, found_late) > 0.95


def test_noise_within_one_mode_merges_and_z_decides():
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    assert len(density_peaks(x, k=20, z=0.0).centres) > 1
    assert len(density_peaks(x, k=20, z=3.0).centres) == 1
    counts = [len(density_peaks(x, k=20, z=z).centres) for z in (0.0, 0.5, 1.0, 1.65, 3.0)]
    assert counts == sorted(counts, reverse=True)


def test_every_point_climbs_and_passes_lie_below_their_peaks():
    x, _labels = blobs(3, 120, 3, 4.5)
    peaks = density_peaks(x, k=12, z=0.5)
    assert len(peaks.centres) > 1
    assert set(peaks.labels.tolist()) == set(range(len(peaks.centres)))
    top = peaks.log_density[peaks.centres]
    assert bool((top[:-1] >= top[1:]).all())
    touching = ~torch.isnan(peaks.saddles)
    assert bool(touching.any())
    assert torch.equal(touching, touching.T)
    rise = torch.minimum(top[:, None], top) - peaks.saddles
    assert bool((rise[touching] >= 2 * 0.5 / math.sqrt(12)).all())


def test_no_denser_neighbour_and_no_denser_follower_at_a_peak():
    x, _labels = blobs(3, 60, 4, 3.0)
    peaks = density_peaks(x, k=10, z=0.0)
    index = neighbour_search(x, 10).indices
    for centre in peaks.centres.tolist():
        value = peaks.log_density[centre]
        assert bool((peaks.log_density[index[centre]] <= value).all())
        followers = (index == centre).any(1)
        assert bool((peaks.log_density[followers] <= value).all())


def test_permutation_scale_and_given_neighbours_do_not_matter():
    x, _labels = blobs(4, 70, 5, 2.5)
    first = density_peaks(x, k=15)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert adjusted_rand_score(density_peaks(4 * x[order] + 1, k=15).labels, first.labels[order]) == 1.0
    again = density_peaks(x, k=15, found=neighbour_search(x, 40))
    assert torch.equal(again.labels, first.labels)


def test_exact_collapse_gives_one_cluster_a_class_with_a_reason():
    labels = torch.arange(200) % 5
    peaks = density_peaks(torch.eye(5)[labels], k=10, dimension=4.0)
    assert adjusted_rand_score(labels, peaks.labels) == 1.0
    assert "200 points" in str(peaks.reason)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k": 40}, "k must be"),
        ({"z": -1.0, "k": 5}, "must not be negative"),
        ({"found": "small", "k": 5}, "density_peaks needs"),
    ],
)
def test_bad_input_is_one_clear_error(kwargs, message):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    if "found" in kwargs:
        kwargs = kwargs | {"found": neighbour_search(x, 3)}
    with pytest.raises(ValueError, match=message):
        density_peaks(x, **kwargs)
    with pytest.raises(ValueError, match="give dimension="):
        density_peaks(torch.ones(40, 3), k=5)
