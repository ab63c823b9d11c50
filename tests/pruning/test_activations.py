"""Scores from activations, against float64 twins: Wanda of every kind of layer, and what counts as an activation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import reference_pruning as ref
from nucleate.pruning.scores import scores
from nucleate.pruning.select import select


def test_wanda_of_a_linear_map() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = scores(model, "wanda", [(x[:20], None), (x[20:], None)])
    want = model[0].weight.detach().abs().double() * x.double().norm(dim=0)
    torch.testing.assert_close(found["0.weight"], want)
    assert found.layout["0.weight"].ranking == "output"
    assert found.record["examples"] == 50
    kept = select(found, 0.5)["0.weight"]
    assert kept.sum(1).tolist() == [2, 2, 2]
    assert torch.equal(kept.bool(), want >= want.sort(1, descending=True).values[:, 1:2])
    ones = scores(model, "wanda", [(torch.ones(5, 4), None)])
    sizes = model[0].weight.detach().abs()
    assert torch.equal(select(ones, 0.5)["0.weight"].bool(), sizes >= sizes.sort(1, descending=True).values[:, 1:2])


def test_wanda_follows_the_output_axis_of_a_conv1d() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    Conv1D.__module__ = "transformers.pytorch_utils"
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(Conv1D())
    found = scores(model, "wanda", [(x, None)])
    want = model[0].weight.detach().abs().double() * x.double().flatten(0, 1).norm(dim=0)[:, None]
    torch.testing.assert_close(found["0.weight"], want)
    assert select(found, 0.5)["0.weight"].sum(0).tolist() == [2, 2, 2]


def test_wanda_leaves_padding_out() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 5, 4, generator=generator), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    garbage = x.masked_fill(mask[..., None] == 0, 1e6)
    model = Model()
    found = scores(model, "wanda", [({"x": garbage, "attention_mask": mask}, None)])["fc.weight"]
    norms = x[mask.bool()].double().norm(dim=0)
    torch.testing.assert_close(found, model.fc.weight.detach().abs().double() * norms)


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 1, 2), (2, 1, 4)])
def test_wanda_of_a_convolution(stride: int, padding: int, groups: int) -> None:
    conv = nn.Conv2d(4, 8, 3, stride=stride, padding=padding, groups=groups)
    x = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    found = scores(nn.Sequential(conv), "wanda", [(x, None)])["0.weight"].numpy()
    energy = ref.conv_energy(x.double().numpy(), tuple(conv.weight.shape), stride, padding, groups)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, np.abs(conv.weight.detach().double().numpy()) * np.sqrt(energy), rtol=1e-9)


def test_wanda_of_a_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(2, 3, 2, stride=2)
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = scores(nn.Sequential(layer), "wanda", [(x, None)])["0.weight"]
    # Stride equals kernel and nothing is cut off: every weight meets every position of its input once.
    norms = x.double().square().sum((0, 2, 3)).sqrt()[:, None, None, None]
    torch.testing.assert_close(found, layer.weight.detach().abs().double() * norms)


def test_activations_are_those_after_relu() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    model[1].running_mean.normal_(generator=torch.Generator().manual_seed(2))
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a = model.eval()[:3](x)
    batches = [(x[:10], None), (x[10:], None)]
    for method, want in (
        ("apoz", (a > 0).double().mean(0)),
        ("mean_activation", a.double().mean(0)),
        ("l2_activation", a.double().square().mean(0).sqrt()),
    ):
        torch.testing.assert_close(scores(model, method, batches)["0.weight"], want)


def test_activations_are_found_behind_functional_and_in_place_relu() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3), nn.Linear(8, 2)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.act(self.b(torch.relu(self.a(x)))).flatten(1))

    model = Functional()
    x = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = scores(model, "apoz", [(x, None)])
    with torch.no_grad():
        first = torch.relu(model.a(x))
        second = torch.relu(model.b(first))
    torch.testing.assert_close(found["a.weight"], (first > 0).double().mean((0, 2, 3)))
    torch.testing.assert_close(found["b.weight"], (second > 0).double().mean((0, 2, 3)))
    with pytest.raises(ValueError, match="followed by a ReLU"):
        scores(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), "apoz", [(x[:, 0, 0, :3], None)])
