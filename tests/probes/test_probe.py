"""A probe's numbers are those of each layer's features taken one by one, however they were gathered."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.geometry.collapse import collapse
from nucleate.geometry.dimension import intrinsic_dimension, participation
from nucleate.geometry.neighbours import layer_overlap, neighbour_hit, neighbour_search
from nucleate.geometry.similarity import cka
from nucleate.models import build
from nucleate.probes.calibration import expected_calibration_error
from nucleate.probes.layers import MEASURES, probe
from nucleate.probes.points import MemoryCache
from nucleate.probes.resolve import resolve_layers
from nucleate.probes.tap import tap
from nucleate.spec import ModelSpec

C = 5
Points = tuple[Tensor, Tensor]


def points(n: int = 300, shape: tuple[int, ...] = (20,), *, seed: int = 0) -> Points:
    """Classes around means that every seed shares."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    means = torch.randn(C, *shape, generator=torch.Generator().manual_seed(9))
    return means[y] + 0.7 * torch.randn(n, *shape, generator=g), y


def batches(data: Points, size: int = 64) -> list[Points]:
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / (p[0].numel() ** 0.5 if p.ndim > 1 else 10))
    return model


def mlp() -> nn.Module:
    layers = [nn.Linear(20, 32), nn.ReLU(inplace=True), nn.Linear(32, 16), nn.ReLU(inplace=True), nn.Linear(16, C)]
    return seeded(nn.Sequential(*layers))


class Reused(nn.Module):
    """One activation for all maps, batch normalisation, a functional ReLU before the classifier, a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, C)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.act(self.norm(self.conv1(x)))
        h = self.act(self.conv2(h))
        h = F.relu(h.mean((2, 3)) - 0.05)
        return self.fc(h), {"hidden": h}


class Tokens(nn.Module):
    """Sequences through blocks that return tuples; the first token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.lstm = nn.LSTM(12, 12, batch_first=True)
        self.block = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.3, batch_first=True)
        self.head = nn.Linear(12, C)

    def forward(self, ids: Tensor) -> Tensor:
        h, _ = self.lstm(self.embed(ids))
        return self.head(self.block(h)[:, 0])


def cached_features(model: nn.Module, data: Points, **kwargs: Any) -> dict[str, Tensor]:
    """Every layer's features by a tap, layer by layer as `probe` names them."""
    layers = resolve_layers(model, data[0][:2], **kwargs)
    pool = kwargs.get("pool", "auto")
    how = {layer.tap: "flatten" if layer.tap == "input" else layer.pool or pool for layer in layers}
    model.eval()
    with torch.no_grad(), tap(model, [layer.tap for layer in layers], pool=how) as seen:
        model(data[0])
    return {layer.name: seen[layer.tap] for layer in layers}


CASES = {
    "in-place MLP": (mlp, (20,)),
    "reused modules, tuple output": (lambda: seeded(Reused()), (1, 9, 9)),
    "ResNet": (
        lambda: build(
            ModelSpec(name="resnet", width=4, depth=1), (3, 16, 16), C, generator=torch.Generator().manual_seed(0)
        ),
        (3, 16, 16),
    ),
    "convnet": (
        lambda: build(ModelSpec(name="convnet", width=4), (1, 16, 16), C, generator=torch.Generator().manual_seed(0)),
        (1, 16, 16),
    ),
}


def case(name: str) -> tuple[nn.Module, Points]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make, shape = CASES[name]
        return make(), points(shape=shape)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cache", [None, "memory", "disk"])
def test_every_layer_equals_collapse_on_its_features(name: str, cache: Any) -> None:
    net, data = case(name)
    features = cached_features(net, data)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    found = probe(net, batches(data), cache=cache)
    assert found.layers == list(features) and found.layers[-2:] == ["penultimate", "logits"]
    for layer, h in features.items():
        head = {"weight": linear.weight, "bias": linear.bias} if layer == "penultimate" else {}
        want = collapse(h, data[1], num_classes=C, second_moment=False, **head).asdict()
        for metric in set(want) - {"num_classes", "dim"}:
            if (layer, metric) not in {(r["layer"], r["metric"]) for r in found}:
                assert layer != "penultimate" and math.isnan(want[metric]), metric
                continue
            got = found.value(layer, metric)
            # The batches of a forward pass round differently from one pass over all points.
            assert got == pytest.approx(want[metric], rel=2e-5, abs=1e-6, nan_ok=True), (layer, metric)
        assert found.record(layer, "nc1")["method"] == ("project" if cache is None else f"cache ({cache})")


def test_the_subsample_measures_equal_theirs_on_the_same_points() -> None:
    net, data = case("in-place MLP")
    features = cached_features(net, data)
    found = probe(net, batches(data), k=7)
    names = list(features)
    near = {name: neighbour_search(h, 7) for name, h in features.items()}
    for i, (name, h) in enumerate(features.items()):
        assert found.value(name, "chi") == pytest.approx(neighbour_hit(h, data[1], 7), abs=2e-3)
        assert found.value(name, "intrinsic_dimension") == pytest.approx(intrinsic_dimension(h), rel=1e-4)
        assert found.value(name, "participation_ratio") == pytest.approx(participation(h).value, rel=1e-5)
        assert found.value(name, "cka_last") == pytest.approx(cka(h, features["logits"]), rel=1e-5)
        if i + 1 < len(names):
            shared = layer_overlap(near[name], near[names[i + 1]]).value
            assert found.value(name, "overlap_next") == pytest.approx(shared, abs=2e-3)
    assert found.record("input", "chi")["k"] == 7 and found.value("logits", "cka_last") == pytest.approx(1)


def test_outputs_of_the_whole_network() -> None:
    net, data = case("in-place MLP")
    with torch.no_grad():
        z = net(data[0])
    found = probe(net, batches(data, 50), measures="outputs")
    assert {row["layer"] for row in found} == {""}
    assert found.value("", "accuracy") == float((z.argmax(1) == data[1]).double().mean())
    assert found.value("", "loss") == pytest.approx(float(F.cross_entropy(z, data[1])), rel=1e-6)
    assert found.value("", "ece") == pytest.approx(expected_calibration_error(z.softmax(1), data[1]), rel=1e-5)
    far = (z.softmax(1) - F.one_hot(data[1], C)).norm(dim=1)
    assert found.value("", "vertex_distance_max") == pytest.approx(float(far.max()), rel=1e-6)


def test_test_points_are_judged_by_the_training_means() -> None:
    net, data = case("in-place MLP")
    test = points(100, seed=1)
    found = probe(net, batches(data), test_batches=batches(test))
    train, held_out = cached_features(net, data), cached_features(net, test)
    for layer in found.layers:
        means = torch.stack([train[layer][data[1] == c].double().mean(0) for c in range(C)])
        want = collapse(held_out[layer], test[1], num_classes=C, means=means)
        for metric in ("nc1", "nc1_quotient", "ncc_accuracy"):
            assert found.value(layer, metric, "test") == pytest.approx(getattr(want, metric), rel=1e-5)
    # The rows of the training points are those of a probe without a test split.
    alone = probe(net, batches(data))
    assert [r for r in found if r["split"] == "train"] == alone


@pytest.mark.parametrize("convention", ["papyan_notebook", "jiang2023", "rangamani2023", "wu2024"])
def test_conventions_reach_both_splits(convention: str) -> None:
    net, data = case("in-place MLP")
    test = points(100, seed=1)
    found = probe(net, data, test_batches=test, convention=convention)
    train, held_out = cached_features(net, data)["penultimate"], cached_features(net, test)["penultimate"]
    head = {"weight": net[4].weight, "bias": net[4].bias, "convention": convention}
    h = F.normalize(train.double()) if convention == "jiang2023" else train.double()
    means = torch.stack([h[data[1] == c].mean(0) for c in range(C)])
    want = {"train": collapse(train, data[1], **head), "test": collapse(held_out, test[1], means=means, **head)}
    for split, expected in want.items():
        for metric in ("nc1", "nc3", "nc4"):
            got = found.record("penultimate", metric, split)
            assert got["value"] == pytest.approx(getattr(expected, metric), rel=1e-4), (split, metric)
            assert got["convention"] == convention


def test_the_batch_size_is_irrelevant() -> None:
    net, data = case("in-place MLP")
    first, again = (probe(net, batches(data, size), subsample=80) for size in (300, 17))
    assert [(r["layer"], r["metric"]) for r in first] == [(r["layer"], r["metric"]) for r in again]
    for a, b in zip(first, again, strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-4, abs=1e-6, nan_ok=True), a
    other = probe(net, data, subsample=80, generator=torch.Generator().manual_seed(1), measures="chi")
    assert other.value("input", "chi") != first.value("input", "chi")
    assert probe(net, data, subsample=80, measures="chi").value("input", "chi") == first.value("input", "chi")


def test_an_iterator_is_read_once_with_the_second_moment() -> None:
    net, data = case("in-place MLP")
    read: list[int] = []

    def once() -> Iterator[Points]:
        for i, batch in enumerate(batches(data)):
            read.append(i)
            yield batch

    found = probe(net, once())
    assert read == list(range(5))
    want = probe(net, batches(data))
    for layer in found.layers:
        assert found.record(layer, "nc1")["method"] == "gram"
        assert found.value(layer, "nc1") == pytest.approx(want.value(layer, "nc1"), rel=1e-5)
        missing = found.record(layer, "ncc_accuracy")
        assert math.isnan(missing["value"]) and missing["reason"].startswith("needs a second pass")
    held = probe(net, once(), cache="memory")
    assert held.value("penultimate", "nc4") == want.value("penultimate", "nc4")


def test_many_classes_take_the_second_moment_unless_points_are_wanted() -> None:
    n, classes = 400, 40
    g = torch.Generator().manual_seed(0)
    net = seeded(nn.Sequential(nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, classes)))
    data = torch.randn(n, 60, generator=g), torch.arange(n) % classes
    found = probe(net, data, measures="collapse")
    ways = {layer: found.record(layer, "nc1")["method"] for layer in found.layers}
    assert ways == {"input": "project", "penultimate": "gram", "logits": "gram"}
    every = probe(net, data)
    assert {row["method"] for row in every if row["metric"] == "nc1"} == {"project"}
    # The logits span 8 dimensions only: beyond them both ways see nothing but rounding.
    for layer in ("input", "penultimate"):
        assert found.value(layer, "nc1") == pytest.approx(every.value(layer, "nc1"), rel=1e-5)


def test_a_wide_layer_of_an_iterator_says_what_it_would_need() -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 2100), nn.ReLU(), nn.Linear(2100, C)))
    data = points(60, (4,))
    row = probe(net, iter(batches(data)), measures="collapse").record("penultimate", "nc1")
    assert math.isnan(row["value"]) and "second pass" in row["reason"] and row["method"] == "moments"


def test_token_sequences_and_their_pooling() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tokens()
    ids = torch.randint(11, (90, 7), generator=torch.Generator().manual_seed(0))
    data = ids, torch.arange(90) % C
    found = probe(net, batches(data), layers=["lstm", "block", "penultimate"], pool="cls", measures="collapse")
    net.eval()
    with torch.no_grad(), tap(net, ["lstm", "block"]) as seen:
        net(ids)
    for layer in ("lstm", "block"):
        row = found.record(layer, "nc1")
        assert row["value"] == pytest.approx(collapse(seen[layer][:, 0], data[1]).nc1, rel=1e-5)
        assert row["pool"] == "cls"
    mixed = probe(net, data, layers=["lstm", "block"], pool={"lstm": "last"}, measures="collapse")
    assert mixed.record("lstm", "nc1")["pool"] == "last" and mixed.record("block", "nc1")["pool"] == "mean"
    assert mixed.value("lstm", "nc1") == pytest.approx(collapse(seen["lstm"][:, -1], data[1]).nc1, rel=1e-5)
    assert "pool" not in found.record("penultimate", "nc1")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
@pytest.mark.parametrize("warm", [False, True])
def test_wrapped_modules_give_the_same_records(wrap: Any, warm: bool) -> None:
    net, data = case("in-place MLP")
    want = probe(net, batches(data))
    wrapped = wrap(net)
    if warm:
        wrapped(data[0][:64])
    assert probe(wrapped, batches(data)) == want


def test_a_dictionary_of_keywords_and_a_data_loader() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, *, pixels: Tensor, scale: Tensor) -> Tensor:
            return self.net(pixels * scale)

    data = points()
    given = [{"pixels": x, "scale": torch.ones(len(x), 1), "labels": y} for x, y in batches(data)]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=64, shuffle=True)
    want = probe(mlp(), batches(data), measures=["collapse", "points"])
    for source, model in ((given, Keywords()), (loader, mlp())):
        found = probe(model, source, measures=["collapse", "points"])
        for metric in ("nc1", "nc3", "nc4"):
            assert found.value("penultimate", metric) == pytest.approx(want.value("penultimate", metric), rel=1e-5)


def test_effective_depth_is_the_first_separated_layer() -> None:
    data = points(200, (20,))
    net = mlp()
    found = probe(net, data, measures=["points"])
    errors = [1 - found.value(layer, "ncc_accuracy") for layer in found.layers]
    first = next((i for i, e in enumerate(errors) if e <= 0.01), None)
    row = found.record("", "effective_depth_first")
    assert row["value"] == first and row["at"] == found.layers[first] and row["eps"] == 0.01


def test_every_measure_alone_gives_only_its_group() -> None:
    net, data = case("in-place MLP")
    every = probe(net, data)
    parts = [row for group in MEASURES for row in probe(net, data, measures=group)]
    names = {(r["layer"], r["split"], r["metric"]) for r in every}
    # The ratio of the logits is reported with the outputs, and taken from the moments.
    assert {(r["layer"], r["split"], r["metric"]) for r in parts} == names - {("", "train", "logit_ratio")}
    # Without "points", the logits take the second moment, which gives VCI as well.
    for row in (row for row in parts if row["metric"] != "nc1_vci"):
        got = every.value(row["layer"], row["metric"])
        assert got == pytest.approx(row["value"], rel=1e-6, nan_ok=True), row["metric"]


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are asked for on Linux only")
def test_features_are_kept_where_the_kernel_has_no_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(mmap.mmap):
        def madvise(self, *args: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Small)
    cache, kept = MemoryCache(), torch.randn(5, 3)
    cache.add(kept)
    assert torch.equal(next(iter(cache)), kept)
