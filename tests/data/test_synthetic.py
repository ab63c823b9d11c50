"""What the synthetic tasks promise: blobs fall apart, spirals do not, superclasses are hidden and can be learnt."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from nucleate.data import Dataset, load
from nucleate.models import build
from nucleate.spec import DataSpec, ModelSpec


def neighbour_share(x: Tensor, labels: Tensor, k: int = 5) -> float:
    """Share of the k nearest others with the same label, by all distances in float64."""
    distances = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf)
    return float((labels[distances.topk(k, largest=False).indices] == labels[:, None]).double().mean())


def linear_accuracy(data: Dataset) -> float:
    """Held-out accuracy of least squares on one-hot targets."""
    ones = torch.ones(len(data.train_inputs), 1)
    x = torch.cat([data.train_inputs, ones], dim=1)
    solution = torch.linalg.lstsq(x, F.one_hot(data.train_labels).float()).solution
    test = torch.cat([data.test_inputs, torch.ones(len(data.test_inputs), 1)], dim=1)
    return float(((test @ solution).argmax(1) == data.test_labels).float().mean())


def test_blobs_lie_where_they_should() -> None:
    data = load(DataSpec(name="blobs", train_size=4000))
    assert linear_accuracy(data) > 0.99
    for c, centre in enumerate([(2.0, 0.0), (0.0, 2.0), (-2.0, 0.0), (0.0, -2.0)]):
        points = data.train_inputs[data.train_labels == c]
        # 1,000 points: standard error of the mean 0.011, of the deviation 0.008.
        assert (points.mean(0) - torch.tensor(centre)).abs().max() < 0.06
        assert (points.std(0) - 0.35).abs().max() < 0.04


def test_spirals_need_a_curved_boundary() -> None:
    data = load(DataSpec(name="spirals"))
    assert linear_accuracy(data) < 0.65
    assert neighbour_share(data.train_inputs, data.train_labels) > 0.95


def test_superclasses_are_hidden_from_neighbours_and_lines() -> None:
    for seed in range(3):
        data = load(DataSpec(name="superclasses", seed=seed))
        assert data.superclasses is not None and data.num_classes == 16
        groups = data.coarse(data.test_labels)
        # Chance of 2,000 points in 16 classes of 125 is 124 / 1999 = 0.062, in 4 groups of 500 0.250.
        assert neighbour_share(data.test_inputs, data.test_labels) < 0.062 + 0.05
        assert neighbour_share(data.test_inputs, groups) < 0.45
        assert linear_accuracy(data) < 0.11


def test_no_single_coordinate_tells_a_superclass() -> None:
    data = load(DataSpec(name="superclasses"))
    for c in range(16):
        # 625 points a class: standard error of a mean of unit spread 0.04.
        assert data.train_inputs[data.train_labels == c].mean(0).abs().max() < 0.2


@pytest.mark.slow
def test_superclasses_form_group_first_in_a_trained_mlp() -> None:
    """Doimo et al. 2020 in small: held-out chi rises with depth, and the groups are ahead of the classes."""
    data = load(DataSpec(name="superclasses"))
    generator = Generator().manual_seed(0)
    model = build(ModelSpec(width=256, depth=6), data.input_shape, data.num_classes, generator=generator)
    epochs = 20
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 if epoch < 2 * epochs // 3 else 0.005
        for batch in torch.randperm(len(data.train_labels), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_inputs[batch]), data.train_labels[batch]).backward()
            optimizer.step()
    layers = [data.test_inputs]
    with torch.no_grad():
        for block in model.hidden:
            layers.append(block(layers[-1]))
        accuracy = float((model.classifier(layers[-1]).argmax(1) == data.test_labels).float().mean())
    fine = [neighbour_share(x, data.test_labels) for x in layers]
    coarse = [neighbour_share(x, data.coarse(data.test_labels)) for x in layers]
    assert accuracy > 0.95
    assert fine[-1] > 0.9 and all(later > earlier - 0.01 for earlier, later in pairwise(fine))
    # How much of the way from chance to one each has gone.
    gone = [((c - 0.25) / 0.75, (f - 0.062) / 0.938) for c, f in zip(coarse, fine, strict=True)]
    assert all(c > f for c, f in gone[:-1])
    assert max(c - f for c, f in gone) > 0.2
