"""What a tap sees, on modules that try to hide it, and that nothing of it stays behind."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.probes.pooling import pooled
from nucleate.probes.tap import evaluating, find, listen, tap


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Functional(nn.Module):
    """One activation module for all layers, a functional one before the classifier."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3)
        self.conv2 = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv2(self.act(self.conv1(x))))
        return self.fc(F.relu(x.mean((2, 3)) - 0.1))


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=generator)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_an_in_place_operation_after_the_layer_does_not_rewrite_it(images: Tensor) -> None:
    net = Functional(inplace=True)
    with tap(net, ["conv1", "input:act"]) as seen:
        net(images)
    expected = net.conv1(images)
    assert bool((expected < 0).any())
    assert torch.equal(seen["conv1"], expected)
    assert torch.equal(seen["input:act"], expected)


def test_functional_activations_before_the_classifier_are_seen_as_its_input(images: Tensor) -> None:
    net = Functional()
    with tap(net, "input:fc") as seen:
        out = net(images)
    assert float(seen["input:fc"].min()) == 0
    assert torch.equal(net.fc(seen["input:fc"]), out)


def test_a_reused_module_is_recorded_run_by_run_and_every_pass_starts_anew(images: Tensor) -> None:
    net = Functional()
    with tap(net, ["act", "act#2"]) as seen:
        net(images)
        net(images[:2])
        assert list(seen) == ["act", "act#2"]
        assert seen["act"].shape == (2, 3, 6, 6) and seen["act#2"].shape == (2, 4, 4, 4)
    with tap(net, "act#2") as seen:
        net(images)
    assert list(seen) == ["act#2"]


def test_tuple_and_dict_outputs_give_their_first_floating_tensor(generator: torch.Generator) -> None:
    class Output(nn.Module):
        def forward(self, h: Tensor) -> OrderedDict[str, Any]:
            return OrderedDict(ids=torch.zeros(1, dtype=torch.long), hidden=[{"h": h + 1}])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.out = Output()
            self.none = nn.Identity()

        def forward(self, *, x: Tensor) -> Any:
            self.none(None)
            return self.out(h=self.lstm(x)[0])

    net, x = Net(), torch.randn(2, 5, 3, generator=generator)
    with tap(net, ["lstm", "input:out", "logits", "input"]) as seen:
        net(x=x)
    assert torch.equal(seen["lstm"], net.lstm(x)[0])
    assert torch.equal(seen["input:out"], seen["lstm"])
    assert torch.equal(seen["logits"], seen["lstm"] + 1)
    assert torch.equal(seen["input"], x)
    with tap(net, "none"), pytest.raises(ValueError, match="'none' gives NoneType without any tensor"):
        net(x=x)
    assert hooks(net) == 0


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_model_that_was_compiled_before_is_seen(how: str, images: Tensor) -> None:
    net = Functional()
    compiled: Any = net
    if how == "wrapped":
        compiled = torch.compile(net, backend="eager")
    else:
        net.compile(backend="eager")
    before = compiled(images)
    with tap(compiled, ["conv1", "input:fc"]) as seen:
        during = compiled(images)
    torch.testing.assert_close(during, before)
    assert list(seen) == ["conv1", "input:fc"]
    assert torch.equal(seen["conv1"], net.conv1(images))
    assert hooks(net) == 0
    assert torch.compiler.is_compiling() is False
    torch.testing.assert_close(compiled(images), before)


def test_wrapped_models_keep_the_names_inside(images: Tensor) -> None:
    net = Functional()
    wrapped = nn.DataParallel(net)
    for model in (wrapped, nn.DataParallel(torch.compile(net, backend="eager"))):  # type: ignore[arg-type]
        with tap(model, ["conv1", "module.conv2", "module._orig_mod.fc"]) as seen:
            model(images)
        assert list(seen) == ["conv1", "conv2", "fc"]
    holder = nn.Sequential(OrderedDict(body=wrapped))
    with tap(holder, "body.fc") as seen:
        holder(images)
    assert seen["body.fc"].shape == (5, 2)


def test_data_parallel_over_several_devices_runs_on_one_while_tapped() -> None:
    wrapped = nn.DataParallel(Functional())
    wrapped.device_ids = [0, 1]
    with tap(wrapped, "fc"):
        assert wrapped.device_ids == [0]
    assert wrapped.device_ids == [0, 1]


def test_names_are_exact_globs_or_regular_expressions() -> None:
    net = Functional()
    assert [p.key for p in find(net, ["conv*", "fc"])] == ["conv1", "conv2", "fc"]
    assert [p.key for p in find(net, "input:conv?")] == ["input:conv1", "input:conv2"]
    assert [p.key for p in find(net, [re.compile(r"conv\d|act"), "conv1"])] == ["conv1", "conv2", "act"]
    with pytest.raises(ValueError, match="no module matches 'conv3'; nearest: conv2, conv1"):
        find(net, "conv3")
    with pytest.raises(ValueError, match="no module matches"):
        find(net, re.compile("conv"))
    with tap(net, "fc") as seen, pytest.raises(KeyError, match="run the model inside the block"):
        seen["fc"]


def test_hooks_and_modes_come_back_after_an_error(images: Tensor) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), Functional())
    net[1].eval()
    mine = net[0].register_forward_hook(lambda *_: None)
    before = hooks(net)
    with pytest.raises(RuntimeError), tap(net, "*"), evaluating(net):
        assert not any(m.training for m in net.modules())
        net(images[:, :, :1])
    assert hooks(net) == before == 1
    assert [m.training for m in net] == [True, False, True]
    mine.remove()


def test_the_graph_is_kept_on_request(images: Tensor) -> None:
    net = Functional()
    with tap(net, "conv1", detach=False) as seen:
        net(images)
    seen["conv1"].sum().backward()
    assert net.conv1.weight.grad is not None
    with tap(net, "conv1") as seen:
        net(images)
    assert not seen["conv1"].requires_grad


def test_listening_keeps_nothing(images: Tensor) -> None:
    net, shapes = Functional(), []
    with listen(net, ["conv*"], lambda name, h: shapes.append((name, tuple(h.shape)))):
        net(images)
    assert shapes == [("conv1", (5, 3, 6, 6)), ("conv2", (5, 4, 4, 4))]


def test_scripted_parts_are_refused() -> None:
    with pytest.warns(DeprecationWarning):
        net = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="'0' is scripted"):
        find(net, "0")


def test_poolings_are_what_their_names_say(generator: torch.Generator) -> None:
    maps, tokens = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 7, 3, generator=generator)
    assert torch.equal(pooled(maps, "flatten"), maps.flatten(1))
    torch.testing.assert_close(pooled(maps), maps.mean((2, 3)))
    torch.testing.assert_close(pooled(maps.to(memory_format=torch.channels_last), "gap"), maps.mean((2, 3)))
    assert torch.equal(pooled(maps, "position:1,-1"), maps[:, :, 1, -1])
    torch.testing.assert_close(pooled(tokens), tokens.mean(1))
    torch.testing.assert_close(pooled(tokens, "gap"), tokens.mean(2))
    assert torch.equal(pooled(tokens, "cls"), tokens[:, 0]) and torch.equal(pooled(tokens, "last"), tokens[:, -1])
    assert torch.equal(pooled(tokens, "token:3"), tokens[:, 3])
    assert torch.equal(pooled(tokens, lambda h: h.amax(1)), tokens.amax(1))
    assert pooled(torch.zeros(4)).shape == (4, 1)


@pytest.mark.parametrize(
    ("pool", "shape", "match"),
    [
        ("average", (2, 3, 4, 4), "unknown pool 'average'"),
        ("token:x", (2, 3, 4), "unknown pool 'token:x'"),
        ("token:7", (2, 3, 4), "does not fit"),
        ("position:1", (2, 3, 4, 4), "does not fit"),
        ("cls", (2, 3, 4, 4), "a mapping from layers to pools"),
        (lambda h: h.sum(), (2, 3, 4), "must give one vector a point"),
    ],
)
def test_poolings_that_do_not_fit_are_refused(pool: Any, shape: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pooled(torch.zeros(shape), pool)


def test_a_mapping_pools_layer_by_layer(images: Tensor) -> None:
    net = Functional()
    with tap(net, ["conv1", "conv2"], pool={"conv1": "flatten"}) as seen:
        net(images)
    assert seen["conv1"].shape == (5, 108) and seen["conv2"].shape == (5, 4)
