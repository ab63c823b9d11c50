"""Shrunk networks compute what the masked ones do, with less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nucleate.compact.fold import masked
from nucleate.compact.shrink import shrink
from nucleate.models import build
from nucleate.spec import ModelSpec


class Branches(nn.Module):
    """Concatenation, groups, a depthwise convolution, and a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(14)
        self.c = nn.Conv2d(14, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 24, 3, groups=3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24, padding=1)
        self.d, self.classifier = nn.Conv2d(24, 12, 1, bias=False), nn.Linear(12 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        h = F.gelu(self.depthwise(torch.relu(self.grouped(self.c(h)))))
        return self.classifier(torch.flatten(self.d(h), 1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, and over by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.bottom = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 10, 3, stride=2, padding=1, output_padding=1)
        self.c, self.norm = nn.Conv2d(22, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.finer = nn.Upsample(scale_factor=2, mode="bilinear")
        self.classifier = nn.Conv2d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        h = torch.relu(self.norm(self.c(torch.cat([self.up(self.bottom(b)), b], 1))))
        return self.classifier(torch.cat([self.finer(h), a], 1))  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """Every layer reads all before it, normalised anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        widths = (8, 14, 20)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.layers = nn.ModuleList(nn.Conv2d(width, 6, 3, padding=1) for width in widths)
        self.classifier = nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = torch.cat([h, layer(torch.relu(norm(h)))], 1)
        return self.classifier(h.mean((2, 3)))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Attention, which stays as it is, and a gated linear unit, which shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.gate, self.up, self.down = nn.Linear(16, 40), nn.Linear(16, 40, bias=False), nn.Linear(40, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(x, x, x)[0]
        return h + self.down(F.silu(self.gate(self.norm(h))) * self.up(self.norm(h)))  # type: ignore[no-any-return]


def nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    g = Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
            "branches": (Branches(), (3, 6, 6)),
            "gated": (Gated(), (5, 16)),
            "unet": (UNet(), (3, 8, 8)),
            "densenet": (DenseNet(), (3, 6, 6)),
        }
    for name, width, depth, shape in (
        ("mlp", 30, 3, (1, 8, 8)),
        ("convnet", 8, 6, (3, 16, 16)),
        ("resnet", 4, 2, (3, 16, 16)),
    ):
        spec = ModelSpec(name=name, width=width, depth=depth, batchnorm=True)
        own[name] = (build(spec, shape, 10, generator=g), shape)
    for net, _ in own.values():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(generator=g)
                module.running_var.uniform_(0.5, 2, generator=g)
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=g)
                nn.init.normal_(module.bias, generator=g)
        net.eval()
    return own


def unit_masks(net: nn.Module, g: Generator, *, axis: int = 0, skip: str = "classifier") -> dict[str, Tensor]:
    """Half of the outputs (or inputs, along axis 1) of every weight go."""
    out = {}
    for name, p in net.named_parameters():
        if p.dim() < 2 or p.shape[axis] < 4 or skip in name or "attention" in name:
            continue
        kept = (torch.rand(p.shape[axis], generator=g) < 0.5).to(torch.uint8)
        kept[0] = 1
        out[name] = kept.view([-1 if i == axis else 1 for i in range(p.dim())]).expand(p.shape).contiguous()
    return out


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet", "branches", "gated", "unet", "densenet"])
@pytest.mark.parametrize("axis", [0, 1])
def test_shrunk_is_masked(name: str, axis: int) -> None:
    net, shape = nets()[name]
    before = copy.deepcopy(net.state_dict())
    g = Generator().manual_seed(axis)
    masks = unit_masks(net, g, axis=axis, skip="classifier" if axis == 0 else "stem")
    if axis == 1:
        # Of weights that read an image all inputs stay.
        masks = {k: m for k, m in masks.items() if m.shape[1] > 3}
    small = shrink(net, masks, torch.randn(2, *shape, generator=g))
    x = torch.randn(5, *shape, generator=g)
    with torch.no_grad():
        exact = masked(net, masks)(x)
        assert float((small(x) - exact).abs().max()) <= 1e-5 * max(1.0, float(exact.abs().max()))
    # A group goes as a whole or not at all.
    assert size(small) < (0.8 if (name, axis) != ("branches", 1) else 1.0) * size(net)
    assert type(small) is type(net)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


def test_a_transposed_convolution_loses_inputs_and_outputs() -> None:
    net = nets()["unet"][0]
    dead = {"bottom.0.weight": torch.ones(16, 12, 3, 3), "up.weight": torch.ones(16, 10, 3, 3)}
    dead["bottom.0.weight"][:5] = 0
    dead["up.weight"][:, :4] = 0
    with torch.no_grad():
        net.get_parameter("bottom.1.bias")[:5] = -100.0
        net.get_parameter("up.bias")[:4] = 0.0
    small = shrink(net, dead, torch.randn(1, 3, 8, 8))
    up, after = small.get_submodule("up"), small.get_submodule("c")
    assert (up.in_channels, up.out_channels, after.in_channels) == (11, 6, 18)


def test_what_goes_is_exactly_what_is_dead() -> None:
    """Half of the units pruned, chains of layers: the sizes can be counted."""
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    masks = {"0.weight": torch.ones(10, 6), "2.weight": torch.ones(8, 10), "4.weight": torch.ones(3, 8)}
    masks["0.weight"][:4] = 0
    masks["4.weight"][:, 5:] = 0
    masks["2.weight"][:5, 9] = 0  # unit 9 of the first layer is read by units that nobody reads
    small = shrink(net, masks, torch.ones(1, 6))
    assert [(m.in_features, m.out_features) for m in small if isinstance(m, nn.Linear)] == [(6, 5), (5, 5), (5, 3)]


def test_constants_at_a_padded_border_become_one_channel() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=1))
    mask = torch.ones(6, 1, 3, 3)
    mask[2:] = 0
    x = torch.randn(2, 1, 7, 7)
    small = shrink(net, {"0.weight": mask}, x)
    assert small[0].out_channels == 3
    assert torch.allclose(small(x), masked(net, {"0.weight": mask})(x), atol=1e-6)
    # Without padding the constants go into the bias, and nothing stays of them.
    bare = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Sigmoid(), nn.Conv2d(6, 2, 3, bias=False))
    small = shrink(bare, {"0.weight": mask}, x)
    assert small[0].out_channels == 2 and small[2].bias is not None
    assert torch.allclose(small(x), masked(bare, {"0.weight": mask})(x), atol=1e-6)


def test_a_layer_that_died_keeps_one_unit() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    small = shrink(net, {"0.weight": torch.zeros(5, 4)}, torch.ones(1, 4))
    assert small[0].out_features == 1
    x = torch.randn(6, 4)
    assert torch.allclose(small(x), masked(net, {"0.weight": torch.zeros(5, 4)})(x), atol=1e-6)


def test_shared_layers_and_tied_weights_stay_whole() -> None:
    layer = nn.Linear(6, 6)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 2))
    mask = torch.ones(6, 6)
    mask[3:] = 0
    x = torch.randn(4, 6)
    small = shrink(net, {"0.weight": mask}, x)
    assert torch.allclose(small(x), masked(net, {"0.weight": mask})(x), atol=1e-6)


class Counting(nn.Module):
    """Code that counts on a layer's size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(h) * self.a.out_features / 6  # type: ignore[no-any-return]


def test_a_model_that_counts_on_its_sizes_is_refused() -> None:
    mask = torch.ones(6, 4)
    mask[2:] = 0
    with pytest.raises(ValueError, match="shrinking Counting changed its outputs"):
        shrink(Counting(), {"a.weight": mask}, torch.randn(3, 4))


def test_a_layer_whose_weights_are_read_elsewhere_stays_whole() -> None:
    class Tied(Counting):
        """Reads a layer's weights beside the layer."""

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))) + F.linear(x, self.a.weight).sum(1, keepdim=True)  # type: ignore[no-any-return]

    mask, x = torch.ones(6, 4), torch.randn(3, 4)
    mask[2:] = 0
    assert shrink(Tied(), {"a.weight": mask}, x).a.out_features == 6


def test_code_that_reads_attention_weights_is_refused() -> None:
    class Weights(nn.Module):
        """Sums the attention weights, which nobody has after heads are gone."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, weights = self.attention(x, x, x)
            return y * weights.sum()  # type: ignore[no-any-return]

    net = Weights().eval()
    with torch.no_grad():
        net.attention.out_proj.weight[:, :4] = 0
    with pytest.raises(ValueError, match="Weights does not run with smaller layers"):
        shrink(net, None, torch.randn(2, 3, 8))


class InPlace(nn.Module):
    """An activation in place whose input is read again: `second` says by whom."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.second = second
        self.a, self.r = nn.Conv2d(1, 8, 1), nn.ReLU(inplace=True)
        self.c, self.f, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.a.weight[:4], self.a.bias[:4] = 0, -1
            self.c.weight[:4], self.c.bias[:4] = 0, 0.5
            self.c.weight[:, :2] = 0
            self.f.weight[:, 2:4] = 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.a(x)
        if self.second == "view":
            part = x[:, :5]
            part.relu_()
            return self.c(x), self.f(x)
        y = self.c(torch.relu_(x) if self.second == "function" else x.relu_() if self.second == "method" else self.r(x))
        if self.second == "sum":
            y += x
            return (self.d(y),)
        return y, self.f(x)


@pytest.mark.parametrize("second", ["layer", "function", "method", "sum", "view"])
def test_operations_in_place_change_what_is_read_later(second: str) -> None:
    net, x = InPlace(second).eval(), torch.randn(2, 1, 3, 3)
    small = shrink(net, None, x)
    with torch.no_grad():
        for got, expected in zip(small(2 * x), net(2 * x), strict=True):
            assert torch.allclose(got, expected, atol=1e-5)
    assert second == "view" or small.a.out_channels < 8


def test_every_output_is_compared() -> None:
    class Two(Counting):
        """Counts on a size in its second output."""

        def forward(self, x: Tensor) -> Any:
            y = self.b(torch.relu(self.a(x)))
            return {"first": y, "rest": [y.sum() * 0 + self.a.out_features]}

    mask = torch.ones(6, 4)
    mask[2:] = 0
    with pytest.raises(ValueError, match="shrinking Two changed its outputs by 4"):
        shrink(Two(), {"a.weight": mask}, torch.randn(3, 4))


def test_an_average_with_a_divisor_changes_constants() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(4, 2, 1))
    mask = torch.ones(4, 1, 1, 1)
    mask[2:] = 0
    x = torch.randn(2, 1, 4, 4)
    small = shrink(net, {"0.weight": mask}, x)
    assert torch.allclose(small(x), masked(net, {"0.weight": mask})(x), atol=1e-6)


class Flattened(nn.Module):
    """A convolution whose image is pooled and flattened in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(1, 16, 1), nn.Linear(64, 3)
        with torch.no_grad():
            self.a.weight[5:], self.a.bias[5:] = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.a(x), 2)
        flat = {
            "size": lambda: h.view(h.size(0), -1),
            "tuple": lambda: h.reshape((x.size(0), -1)),
            "shape": lambda: h.reshape(h.shape[0], -1),
            "keyword": lambda: torch.flatten(h, start_dim=1),
            "both": lambda: h.flatten(1, -1),
            "function": lambda: torch.reshape(h, (h.shape[0], -1)),
        }
        return self.b(flat[self.how]())  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["size", "tuple", "shape", "keyword", "both", "function"])
def test_flattening_is_known_however_it_is_written(how: str) -> None:
    net, x = Flattened(how).eval(), torch.randn(2, 1, 4, 4)
    small = shrink(net, None, x)
    assert small.a.out_channels == 5 and torch.allclose(small(x[:1]), net(x[:1]), atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_any_dimension_shrink(dims: int) -> None:
    class Net(nn.Module):
        """Two convolutions, a mean over all positions, and a classifier."""

        def __init__(self) -> None:
            super().__init__()
            kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
            self.a, self.b, self.c = kind(2, 8, 3, padding=1), kind(8, 6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.b(torch.relu(self.a(x))))
            return self.c(h.mean(tuple(range(2, 2 + dims))))  # type: ignore[no-any-return]

    net, x = Net().eval(), torch.randn(2, 2, *[5] * dims)
    with torch.no_grad():
        net.a.weight[5:], net.a.bias[5:] = 0, 0
        net.b.weight[4:], net.b.bias[4:] = 0, 0
    small: Any = shrink(net, None, x)
    assert (small.a.out_channels, small.b.out_channels) == (5, 4)
    assert torch.allclose(small(x), net(x), atol=1e-6)


def test_a_single_image_without_a_batch_is_left_whole() -> None:
    net, x = nn.Sequential(nn.Conv1d(2, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1)), torch.randn(2, 9)
    with torch.no_grad():
        net[0].weight[5:] = 0
    assert torch.allclose(shrink(net, None, x)(x), net(x))


def test_layers_with_hooks_or_parametrisations_stay_whole() -> None:
    net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(3, 4)
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[3:], layer.bias[3:] = 0, 0
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    nn.utils.parametrizations.weight_norm(net[4])
    small = shrink(net, None, x)
    assert [small[i].out_features for i in (0, 2)] == [6, 5]
    assert torch.allclose(small(x), net(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_units() -> None:
    net = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    assert torch.equal(shrink(net, None, torch.ones(2, 4))(torch.ones(2, 4)), net(torch.ones(2, 4)))
