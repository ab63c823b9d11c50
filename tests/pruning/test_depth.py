"""Whole layers: influence, loss without them, removal, and networks that end early; what each layer can bear."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from nucleate.models import build
from nucleate.pruning.depth import cut, influence, loss_delta, mean_loss, passing_by, removable, without
from nucleate.pruning.sensitivity import sensitivity
from nucleate.spec import ModelSpec

Data = list[tuple[torch.Tensor, torch.Tensor]]


def data(d: int = 6, n: int = 30) -> Data:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, d, generator=generator), torch.randint(3, (n,), generator=generator)
    return [(x[:7], y[:7]), (x[7:], y[7:])]


def stack() -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(6, 8), *(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)), nn.Linear(8, 3)
    )
    for p in model.parameters():
        p.data.normal_(0, 0.4, generator=torch.Generator().manual_seed(p.numel()))
    return model


def test_influence_is_one_less_the_cosine() -> None:
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer, w in zip(model, (turn, 3 * torch.eye(2), -torch.eye(2)), strict=True):
        layer.weight.data.copy_(w)
    x = torch.randn(20, 5, 2, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0  # no angle: left out
    found = influence(model, [(x[:8], None), (x[8:], None)], ["0", "1", "2"])
    assert list(found.values()) == pytest.approx([1 - math.cos(angle), 0.0, 2.0], abs=1e-6)
    with pytest.raises(ValueError, match="nothing but zeros"):
        influence(model, [(torch.zeros(3, 2), None)], ["0"])
    with pytest.raises(ValueError, match="cannot be passed by"):
        influence(nn.Sequential(nn.Linear(2, 3)), [(x, None)], ["0"])


def test_influence_of_maps_is_taken_over_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Identity())
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cosine = torch.cosine_similarity(x, model[0](x), dim=1).double().mean()
    assert influence(model, [(x, None)], ["0"])["0"] == pytest.approx(1 - float(cosine), abs=1e-6)


def test_loss_delta_is_the_loss_of_the_network_without_the_layer() -> None:
    model, batches = stack(), data()
    before = copy.deepcopy(model.state_dict())
    whole = mean_loss(model, batches)
    everything = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    assert whole == pytest.approx(
        float(nn.functional.cross_entropy(model(everything[0]), everything[1]).detach()), rel=1e-5
    )
    found = loss_delta(model, batches, ["1", "2", "3"])
    for name, delta in found.items():
        smaller = nn.Sequential(*(layer for i, layer in enumerate(model) if str(i) != name))
        assert delta == pytest.approx(mean_loss(smaller, batches) - whole, abs=1e-9)
        gone = without(model, [name], batches)
        torch.testing.assert_close(gone(everything[0]), smaller(everything[0]), rtol=0, atol=0)
        assert sum(p.numel() for p in gone.parameters()) == sum(p.numel() for p in smaller.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_only_layers_that_keep_their_shape_can_go() -> None:
    model = build(
        ModelSpec(name="resnet", width=4, depth=2, batchnorm=True),
        (1, 8, 8),
        3,
        generator=torch.Generator().manual_seed(0),
    )
    batches = [(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(4, dtype=torch.long))]
    found = removable(model, batches)
    # The first block of each later stage projects its shortcut; the first stage as a whole keeps its shape.
    assert found == ["stages.0", "stages.1.1", "stages.2.1", "stages.3.1"]
    assert set(influence(model, batches, found)) == set(found)
    for function in (without, loss_delta):
        with pytest.raises(ValueError, match="cannot be passed by"):
            function(model, ["stages.1.0"], batches) if function is without else loss_delta(
                model, batches, ["stages.1.0"]
            )
    with pytest.raises(ValueError, match=r"no layer matches 'stage\.1'"):
        without(model, ["stage.1"], batches)
    small = without(model, ["stages.1.1", "stages.3.1"], batches)
    with passing_by(model, ["stages.1.1", "stages.3.1"]):
        torch.testing.assert_close(model.eval()(batches[0][0]), small.eval()(batches[0][0]), rtol=0, atol=0)
    with pytest.raises(ValueError, match="empty"):
        removable(model, [])


def collapsed() -> tuple[nn.Sequential, Data]:
    """Classes that are clusters after the second layer, and stay so."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 4, generator=generator)
    y = torch.arange(90) % 3
    centres = torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 9.0, 0]])
    clustered = centres[y] + 0.1 * x
    mix = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    # The first layer undoes a scaling that hides the classes from nearest means.
    scale = torch.tensor([1.0, 1.0, 1.0, 1000.0])
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[1].weight.data.copy_(torch.diag(1 / scale))
    model[2].weight.data.copy_(mix)
    model[2].bias.data.fill_(20.0)
    model[4].weight.data.normal_(generator=generator)
    hidden = clustered * scale
    return model, [(hidden[:40], y[:40]), (hidden[40:], y[40:])]


def test_a_network_ends_where_its_classes_have_collapsed() -> None:
    model, batches = collapsed()
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    short = cut(model, batches, ["0", "1", "2", "3"])
    assert short.layer == "1"
    assert bool((short(x).argmax(1) == y).all())
    with torch.no_grad():
        h = model[1](x).double()
    means = torch.stack([h[y == c].mean(0) for c in range(3)])
    assert torch.equal(torch.cdist(h, means).argmin(1), short(x).argmax(1))
    torch.testing.assert_close(short.get_buffer("weight").double(), means, rtol=1e-5, atol=1e-5)
    # What is never run is gone; the model itself is whole.
    assert sum(p.numel() for p in short.parameters()) == 16
    assert sum(p.numel() for p in model.parameters()) == 16 + 20 + 15
    assert copy.deepcopy(short)(x).shape == (90, 3)
    twin = cut(model, batches, ["0", "1"])
    twin.load_state_dict(short.state_dict())


def test_a_network_that_has_not_collapsed_cannot_be_cut() -> None:
    model, batches = collapsed()
    with pytest.raises(ValueError, match=r"no layer classifies by nearest class mean .*: 0 0\.\d+"):
        cut(model, batches, ["0"])
    missing = [(x, y.clamp_min(1)) for x, y in batches]
    with pytest.raises(ValueError, match="class 0 has no example"):
        cut(model, missing, ["1"])
    with pytest.raises(ValueError, match="no layer matches"):
        cut(model, batches, ["7"])


def test_sensitivity_prunes_one_layer_at_a_time() -> None:
    model, batches = stack(), data()
    before = copy.deepcopy(model.state_dict())
    model.train()
    found = sensitivity(model, "magnitude", lambda m: mean_loss(m, batches), densities=(0.5, 0.1), layers="*.0")
    assert list(found) == ["1.0.weight", "2.0.weight", "3.0.weight"] and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, row in found.items():
        assert list(row) == [1.0, 0.5, 0.1]
        alone = copy.deepcopy(model)
        w = alone.get_parameter(name)
        threshold = w.detach().abs().flatten().sort(descending=True).values[31]
        w.data[w.abs() < threshold] = 0
        assert row[0.5] == pytest.approx(mean_loss(alone, batches))
        assert row[1.0] == pytest.approx(mean_loss(model, batches))
    units = sensitivity(
        model, "magnitude", lambda m: mean_loss(m, batches), densities=(0.5,), layers="1.0", shape="unit"
    )
    assert units["1.0.weight"][0.5] != units["1.0.weight"][1.0]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="kept share"):
        sensitivity(model, "magnitude", lambda m: 0.0, densities=(0.0,))
    with pytest.raises(RuntimeError):
        sensitivity(model, "magnitude", lambda m: float(m(torch.zeros(1, 99))[0, 0]), densities=(0.5,))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
