"""Networks of a spec: shapes, parameter counts in closed form, the law of the initial weights, and no global draw."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

from nucleate.models import build
from nucleate.models.build import MODELS
from nucleate.spec import ModelSpec


def make(seed: int = 0, shape: tuple[int, ...] = (3, 16, 16), classes: int = 10, **fields: object) -> nn.Module:
    spec = ModelSpec(**fields)  # type: ignore[arg-type]
    return build(spec, shape, classes, generator=Generator().manual_seed(seed))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "transformer"])
class TestEveryModel:
    """One harness for every network of vectors and images; the one of bytes has a file of its own."""

    def test_shapes_and_last_layer(self, name: str, batchnorm: bool) -> None:
        model = make(name=name, width=8, depth=2, batchnorm=batchnorm, classes=7)
        assert model(torch.rand(5, 3, 16, 16)).shape == (5, 7)
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        assert linear[-1] == "classifier"
        assert list(dict(model.named_modules()))[-1] == "classifier"

    def test_two_classes_have_two_outputs(self, name: str, batchnorm: bool) -> None:
        assert make(name=name, width=4, depth=1, batchnorm=batchnorm, classes=2)(torch.rand(3, 3, 16, 16)).shape == (
            3,
            2,
        )

    def test_generator_decides_the_weights_and_nothing_else_does(self, name: str, batchnorm: bool) -> None:
        before = torch.get_rng_state()
        first = make(1, name=name, width=8, depth=2, batchnorm=batchnorm).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        again = make(1, name=name, width=8, depth=2, batchnorm=batchnorm).state_dict()
        other = make(2, name=name, width=8, depth=2, batchnorm=batchnorm).state_dict()
        assert all(torch.equal(first[k], again[k]) for k in first)
        weights = [k for k in first if first[k].ndim > 1]
        assert weights and not any(torch.equal(first[k], other[k]) for k in weights)

    def test_no_value_is_left_unset(self, name: str, batchnorm: bool) -> None:
        model = make(name=name, width=8, depth=2, batchnorm=batchnorm)
        for key, value in model.state_dict().items():
            assert not value.is_meta
            assert torch.isfinite(value).all(), key
            if key.endswith("bias") or key.endswith("running_mean") or key.endswith("num_batches_tracked"):
                assert not value.any(), key
            if key.endswith("running_var") or ("norm" in key and key.endswith("weight")):
                assert (value == 1).all(), key

    def test_gradients_reach_every_parameter(self, name: str, batchnorm: bool) -> None:
        model = make(name=name, width=8, depth=2, batchnorm=batchnorm)
        model(torch.rand(4, 3, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(("width", "depth", "classes"), [(5, 1, 2), (32, 4, 10)])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_parameters_of_the_mlp(width: int, depth: int, classes: int, batchnorm: bool) -> None:
    model = make(shape=(1, 8, 8), classes=classes, width=width, depth=depth, batchnorm=batchnorm)
    closed = (64 + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * classes
    assert parameters(model) == closed + batchnorm * 2 * depth * width


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_parameters_of_the_convnet(depth: int) -> None:
    width, closed, channels = 16, 0, 3
    for i in range(depth):
        outputs = width * 2 ** (i // 2)
        closed += 9 * channels * outputs + outputs
        channels = outputs
    assert parameters(make(name="convnet", width=width, depth=depth)) == closed + (channels + 1) * 10


def test_resnet_of_width_64_and_depth_2_is_resnet18() -> None:
    model = make(name="resnet", width=64, depth=2, batchnorm=True, shape=(3, 32, 32))
    # The count of the ResNet-18 with a 3 x 3 stem that CIFAR papers use.
    assert parameters(model) == 11_173_962
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == 17


@pytest.mark.parametrize(("name", "layers"), [("mlp", 8), ("convnet", 6)])
def test_activations_keep_their_size_through_depth(name: str, layers: int) -> None:
    """The He law: the second moment after each ReLU stays near that of the input's projection."""
    model = make(name=name, width=128, depth=layers, shape=(3, 32, 32))
    x = torch.randn(64, 3, 32, 32, generator=Generator().manual_seed(1))
    with torch.no_grad():
        out = model(x)
        convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for weight in convolutions[:-1]:
        fan_in = weight[0].numel()
        assert float(weight.detach().var() * fan_in / 2) == pytest.approx(1.0, abs=0.1)
    assert float(convolutions[-1].detach().var() * convolutions[-1].shape[1]) == pytest.approx(1.0, abs=0.15)
    if name == "mlp":
        assert 0.3 < float(out.square().mean()) / 2 < 3.0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_resnet_without_batchnorm_keeps_its_activations_in_bounds(depth: int) -> None:
    """L branches of variance 1 / L multiply the second moment by at most (1 + 1/L)^L < e."""
    model = make(name="resnet", width=32, depth=depth, shape=(3, 16, 16))
    with torch.no_grad():
        stem = model.stem(torch.randn(16, 3, 16, 16, generator=Generator().manual_seed(1)))
        last = model.stages(stem)
    assert 0.1 < float(last.square().mean() / stem.square().mean()) < 10.0


def test_hidden_layers_are_named_in_depth_order() -> None:
    model = make(width=8, depth=11)
    assert [n for n, _ in model.named_children()] == ["flatten", "hidden", "classifier"]
    assert [n for n, _ in model.hidden.named_children()] == [str(i) for i in range(11)]


def test_deep_convnet_on_a_small_image() -> None:
    assert make(name="convnet", width=2, depth=10, shape=(1, 5, 5))(torch.rand(2, 1, 5, 5)).shape == (2, 10)


def test_mlp_reads_vectors_and_may_be_linear() -> None:
    model = make(shape=(7,), classes=3, depth=0)
    assert parameters(model) == 8 * 3
    assert model(torch.rand(4, 7)).shape == (4, 3)


class TestUsersFunction:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_nets.py").write_text(
            "import torch\n"
            "def plain(shape, classes): return torch.nn.Linear(shape[0], classes)\n"
            "def drawn(shape, classes, *, generator):\n"
            "    net = torch.nn.Linear(shape[0], classes)\n"
            "    torch.nn.init.normal_(net.weight, generator=generator)\n"
            "    return net\n"
            "def nothing(): return torch.nn.Linear(6, 3)\n"
            "def classes_only(num_classes): return torch.nn.Linear(6, num_classes)\n"
            "def generator_only(generator): return torch.nn.Linear(6, 3)\n"
            "def usual(width=3): return torch.nn.Linear(6, width)\n"
            "def broken(shape, classes): raise KeyError('no such thing')\n"
            "def wrong(shape, classes): return 3\n"
            "CONSTANT = 1\n"
        )
        monkeypatch.chdir(tmp_path)
        yield
        sys.modules.pop("my_nets", None)

    @pytest.mark.parametrize("name", ["plain", "drawn", "nothing", "classes_only", "generator_only", "usual"])
    def test_is_reproducible_and_leaves_the_global_generator(self, name: str) -> None:
        before, path = torch.get_rng_state(), list(sys.path)
        first, again, other = (make(s, name=f"my_nets:{name}", shape=(6,), classes=3).weight for s in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert sys.path == path
        assert torch.equal(first, again) and not torch.equal(first, other)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("my_nets:broken", "no such thing"),
            ("my_nets:wrong", r"made a int, not a torch\.nn\.Module"),
            ("my_nets:absent", "has no 'absent'"),
            ("my_nets:CONSTANT", "has no callable 'CONSTANT'"),
            ("no_such_module:f", "cannot import 'no_such_module'"),
        ],
    )
    def test_errors_say_what_is_wrong(self, name: str, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            make(name=name, shape=(6,))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "mpl"}, "did you mean mlp"),
        ({"name": "qqqq"}, "there are mlp, lenet, convnet"),
        ({"width": 0}, "model.width"),
        ({"name": "resnet", "depth": 0}, "model.depth"),
        ({"name": "convnet", "shape": (8,)}, "use mlp"),
        ({"classes": 1}, "two classes"),
    ],
)
def test_bad_specs(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(**fields)  # type: ignore[arg-type]
