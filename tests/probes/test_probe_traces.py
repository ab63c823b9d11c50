"""What a probe refuses, what it leaves behind, and that its memory is bounded."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nucleate.probes.layers import probe
from nucleate.probes.points import Batches, Subsample

CPU = torch.device("cpu")


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    return torch.randn(3, 6, generator=g)[y] + 0.5 * torch.randn(120, 6, generator=g), y


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_nothing_is_left_behind(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    net.train()
    net[1].eval()
    modes = [m.training for m in net.modules()]
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    seed, precision = torch.random.get_rng_state(), torch.get_float32_matmul_precision()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=50, shuffle=True)
    probe(net, loader, test_batches=loader)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert torch.get_float32_matmul_precision() == precision and torch.is_grad_enabled()
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_nothing_is_left_behind_after_an_error(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    net.train()
    seed = torch.random.get_rng_state()

    def broken() -> Iterator[Any]:
        torch.rand(3)
        yield data
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        probe(net, broken())
    assert all(m.training for m in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), seed)


class Augmented:
    """A loader that changes its points a little every time."""

    def __init__(self, data: tuple[Tensor, Tensor], change: str) -> None:
        self.data, self.change = data, change
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.data
        if self.change == "noise":
            x = x + 0.05 * torch.randn(x.shape, generator=self.generator)
        elif self.change == "flips":
            x = torch.where(torch.rand(len(x), 1, generator=self.generator) < 0.5, x, x.flip(1))
        elif self.change == "drops":
            keep = torch.rand(len(x), generator=self.generator) < 0.9
            x, y = x[keep], y[keep]
        return zip(x.split(50), y.split(50), strict=True)


@pytest.mark.parametrize("change", ["noise", "flips", "drops"])
def test_loaders_that_augment_are_refused(net: nn.Module, data: tuple[Tensor, Tensor], change: str) -> None:
    for layers in ("auto", ["input"], ["logits"]):
        with pytest.raises(ValueError, match=r"second pass saw other points .* give cache=\"memory\""):
            probe(net, Augmented(data, change), layers=layers, measures=["points"])
    found = probe(net, Augmented(data, change), cache="memory")
    assert found.value("penultimate", "nc1") > 0
    # One reading of test points is all it takes to judge them.
    held_out = probe(net, data, test_batches=Augmented(data, change))
    assert held_out.value("penultimate", "nc4", "test") >= 0


def test_loaders_that_only_shuffle_are_not_refused(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=50, shuffle=True)
    for dtype in (torch.float32, torch.bfloat16):
        pairs = [(x.to(dtype), y) for x, y in torch.utils.data.TensorDataset(*data)]
        loader = torch.utils.data.DataLoader(pairs, batch_size=50, shuffle=True)
        assert probe(net.to(dtype), loader, measures="collapse").value("penultimate", "nc1") > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ["nc1"]}, r"unknown measures \['nc1'\]; there are outputs, collapse"),
        ({"measures": []}, "unknown measures"),
        ({"layers": "0.weights"}, r"no module matches '0.weights'; "),
        ({"layers": re.compile("conv.*")}, r"no module matches 'conv.\*'; there are 0, 1, 2"),
        ({"layers": []}, "no layers to probe"),
        ({"classifier": "9"}, "no module matches '9'"),
        ({"classifier": "2"}, "the classifier '2' has no weight"),
        ({"cache": "tape"}, "cache must be None, 'memory' or 'disk', not 'tape'"),
        ({"k": 0}, "k must be at least 1"),
        ({"subsample": -1}, "subsample must hold at least 0 points, not -1"),
        ({"convention": "papyan"}, "papyan"),
        ({"num_classes": 2}, r"labels must lie in 0..1, but run from 0 to 2"),
    ],
)
def test_wrong_arguments_are_one_clear_error(
    net: nn.Module, data: tuple[Tensor, Tensor], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        probe(net, data, **changes)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "there is no batch to probe"),
        (iter([]), "there is no batch to probe"),
        (torch.zeros(3, 6), r"batches must be \(inputs, labels\)"),
        ((torch.zeros(3, 6), torch.zeros(2)), "3 inputs but 2 labels"),
        ([torch.zeros(3, 6)], r"each batch must be a pair \(inputs, labels\), not Tensor of 3"),
        ([(torch.zeros(3, 6), torch.zeros(3, 2))], r"labels of a batch must be a tensor \(points,\), not \(3, 2\)"),
        ([(torch.zeros(3, 6), torch.zeros(3))], "labels of a batch must be integers"),
        ([{"x": torch.zeros(3, 6)}], 'a batch dict needs "labels"; this one holds x'),
        ([(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))], "there is no point to probe"),
    ],
)
def test_wrong_points_are_one_clear_error(net: nn.Module, source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(net, source)


def test_nan_names_the_class_and_infinity_too(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    for bad in (math.nan, math.inf):
        x = data[0].clone()
        x[4, 2] = bad
        with pytest.raises(ValueError, match="features of class 1 hold NaN or infinity"):
            probe(net, (x, data[1]))


def test_undefined_values_are_nan_with_a_reason(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    one_class = probe(net, (x[y == 0], y[y == 0]), num_classes=3)
    for metric in ("nc1", "nc2_etf"):
        row = one_class.record("penultimate", metric)
        assert math.isnan(row["value"]) and "two classes" in row["reason"]
    single = probe(net, (x[:3], y[:3]))
    assert "one point a class" in single.record("input", "nc1")["reason"]
    assert "k = 5 neighbours need at least 6 points" in single.record("input", "chi")["reason"]
    absent = probe(net, (x[y < 2], y[y < 2]))
    assert absent.value("penultimate", "nc1") > 0 and absent.record("input", "nc1")["n"] == 80
    assert all("reason" in row for row in single + one_class if math.isnan(row["value"]))


def test_a_model_without_a_classifier_says_so(data: tuple[Tensor, Tensor]) -> None:
    found = probe(nn.Sequential(nn.ReLU(), nn.Softmax(1)), data, num_classes=6)
    assert found.layers == ["input", "logits"]
    assert "nc3" not in {row["metric"] for row in found}
    bottleneck = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 7), nn.ReLU())
    row = probe(bottleneck, data, num_classes=3, layers=["penultimate"]).record("penultimate", "nc3")
    assert math.isnan(row["value"]) and "classifier '1' does not fit" in row["reason"]


def test_a_layer_that_runs_on_other_points_only_is_named(data: tuple[Tensor, Tensor]) -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if len(x) > 10 else self.two(x)

    x, y = data
    with pytest.raises(ValueError, match="layer 'two' ran on 2 of 52 points; leave it out"):
        probe(Sometimes(), [(x[:2], y[:2]), (x[:50], y[:50])], layers=["two"])


def test_full_disks_are_an_error_that_leaves_no_file(
    net: nn.Module, data: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    probe(net, data, cache="disk")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("nucleate.probes.points.DiskCache.add", _full)
    with pytest.raises(OSError, match="No space left"):
        probe(net, data, cache="disk")
    assert list(tmp_path.iterdir()) == []


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_the_subsample_is_uniform_and_never_repeats() -> None:
    hits = torch.zeros(40)
    for seed in range(600):
        few = Subsample(10, seed)
        slot_of = torch.full((10,), -1)
        start = 0
        for size in (7, 1, 20, 12):
            rows, slots = few.enter(size)
            slot_of[slots] = rows + start
            start += size
        chosen = slot_of[few.order()]
        assert bool((chosen.diff() > 0).all()) and len(chosen) == 10
        hits[chosen] += 1
    # Binomial with mean 150 and standard deviation 10.6.
    assert float((hits - 150).abs().max()) < 4 * 10.6


def test_iterators_are_known_and_their_first_batch_is_kept(data: tuple[Tensor, Tensor]) -> None:
    once = Batches(iter([data, data]), CPU)
    assert not once.again and once.example().shape == (2, 6)
    assert [len(y) for _, y in once] == [120, 120]
    again = Batches([data], CPU)
    assert again.again and again.total == 1 and Batches(data, CPU).total == 1


def test_the_progress_bar_counts_both_passes(
    net: nn.Module, data: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    probe(net, list(zip(data[0].split(30), data[1].split(30), strict=True)), progress=True)
    assert "probe train: 100%" in capfd.readouterr().err
    probe(net, data)
    assert capfd.readouterr().err == ""


PEAK = """
    import re
    import torch
    from torch import nn
    from nucleate.probes.layers import probe

    def resident(field):
        return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

    torch.set_num_threads(1)
    net = nn.Sequential(nn.Linear(32, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20_000, 32, generator=g), torch.randint(10, (20_000,), generator=g)
    probe(net, (x[:1024], y[:1024]), subsample=200)  # loads what torch loads lazily
    open("/proc/self/clear_refs", "w").write("5")
    before = resident("VmRSS")
    probe(net, (x, y), subsample=200)
    print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no resettable peak of memory here")
def test_memory_does_not_grow_with_the_points() -> None:
    # The features of all layers would be 160 MiB.
    code = textwrap.dedent(PEAK)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) < 60
