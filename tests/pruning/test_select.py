"""Selection: exact counts, ties by index, scopes, and the guard against empty layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from nucleate.pruning.densities import erk, layer_counts, owl, round_half_up, share_out
from nucleate.pruning.layout import Layout
from nucleate.pruning.prune import prune
from nucleate.pruning.scores import Scores, scores
from nucleate.pruning.select import select


def net(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 4))
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(generator=generator)
    return model


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_are_exact_at_every_density(scope: str) -> None:
    found = scores(net(), "magnitude")
    total = 20 * 30 + 30 * 10
    for n in (0, 1, 2, 450, total - 1, total):
        if n:
            masks = select(found, n / total, scope=scope, allow_empty=True)
            if scope == "global":
                assert masks.kept == n
            else:
                for name, mask in masks.items():
                    assert int(mask.sum()) == round_half_up(n / total * found[name].numel())


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.99, 1.0])
def test_a_layer_of_equal_scores_is_split_by_index(density: float) -> None:
    masks = select({"w": torch.full((10, 10), 0.3)}, density)
    count = round(density * 100)
    assert masks["w"].flatten().tolist() == [1] * count + [0] * (100 - count)


def test_rows_compare_within_themselves_where_the_method_says_so() -> None:
    # The second row outweighs the first, yet both keep the same number.
    s = torch.tensor([[1.0, 2.0, 3.0, 4.0], [50.0, 60.0, 80.0, 70.0]])
    held = Scores({"w": s}, layout={"w": Layout(kind="linear", shape=(2, 4), ranking="output")})
    for scope in ("global", "layer"):
        assert select(held, 0.5, scope=scope)["w"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    across = Scores({"w": s.T.contiguous()}, layout={"w": Layout("conv1d", (4, 2), output=1, ranking="output")})
    assert select(across, 0.5)["w"].T.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert int(select(held, 0.375)["w"].sum()) == 3


def test_given_densities_and_counts() -> None:
    found = scores(net(), "magnitude")
    masks = select(found, 0.5, scope={"0.weight": 0.1, "2.weight": 7})
    assert [int(m.sum()) for m in masks.values()] == [60, 7]
    with pytest.raises(ValueError, match=r"no density for 2\.weight"):
        select(found, 0.5, scope={"0.weight": 0.1})
    with pytest.raises(ValueError, match="cannot keep 601"):
        select(found, 0.5, scope={"0.weight": 601, "2.weight": 7})


def test_erk_follows_its_formula_and_keeps_the_total() -> None:
    shapes = {"a": (64, 3, 3, 3), "b": (128, 64, 3, 3), "c": (256, 128)}
    found = erk(shapes, 0.2)
    assert found["a"] == 1.0
    # The layer that is not full follows (sum of sides) / (product of sides) with one factor.
    factor = {n: found[n] / (sum(s) / torch.Size(s).numel()) for n, s in shapes.items() if n != "a"}
    assert factor["b"] == pytest.approx(factor["c"])
    size = {n: torch.Size(s).numel() for n, s in shapes.items()}
    assert sum(found[n] * size[n] for n in size) == pytest.approx(0.2 * sum(size.values()))
    masks = select(
        {n: torch.rand(s, generator=torch.Generator().manual_seed(0)) for n, s in shapes.items()}, 0.1, scope="erk"
    )
    assert masks.kept == round_half_up(0.1 * sum(size.values()))


def test_owl_gives_more_to_layers_with_outliers_and_keeps_the_total() -> None:
    generator = torch.Generator().manual_seed(0)
    flat, spiky = torch.rand(100, 10, generator=generator) + 1, torch.rand(50, 10, generator=generator)
    spiky[:5] += 100
    found = owl({"flat": flat, "spiky": spiky}, 0.5)
    assert found["spiky"] - found["flat"] == pytest.approx(0.16)
    assert found["flat"] * 1000 + found["spiky"] * 500 == pytest.approx(750)
    assert owl({"a": flat, "b": flat}, 0.3) == {"a": 0.3, "b": 0.3}
    counts = layer_counts({"flat": flat, "spiky": spiky}, {}, 0.5, "owl")
    assert sum(counts.values()) == 750


def test_owl_agrees_with_the_published_code_on_layers_of_one_size() -> None:
    generator = torch.Generator().manual_seed(1)
    layers = {str(i): torch.randn(40, 40, generator=generator).abs() ** (i + 1) for i in range(4)}
    ratio = torch.tensor([100 * float((s > 5 * s.mean()).float().mean()) for s in layers.values()])
    scaled = (ratio - ratio.min()) / (ratio.max() - ratio.min()) * 0.08 * 2
    sparsity = 1 - (scaled - scaled.mean() + 1 - 0.7)
    assert [owl(layers, 0.3)[n] for n in layers] == pytest.approx((1 - sparsity).tolist(), abs=1e-6)


def test_shares_are_whole_and_within_the_layers() -> None:
    assert share_out([0.4, 0.4, 0.4], [1, 1, 1], 2) == [1, 1, 0]
    assert share_out([5.0, 5.0], [3, 10], 10) == [3, 7]
    assert sum(share_out([0.1] * 7, [9] * 7, 0)) == 0


def test_an_emptied_layer_is_an_error_unless_asked_for() -> None:
    model = net()
    model[2].weight.data.mul_(1e-6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = scores(model, "magnitude")
    with pytest.raises(ValueError, match=r"empties 2\.weight"):
        select(found, 0.2)
    assert select(found, 0.2, allow_empty=True).emptied == ["2.weight"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_rounds_only_ever_shrink() -> None:
    model = net()
    masks = None
    for density in (0.5, 0.25, 0.1):
        for method in ("random", "magnitude"):
            new = select(scores(model, method, masks=masks, seed=round(100 * density)), density)
            assert masks is None or new.within(masks)
            masks = new
            masks.apply(model)
    assert masks is not None
    with pytest.raises(ValueError, match="earlier rounds left 90"):
        select(scores(model, "magnitude", masks=masks), 0.5)


def test_numbers_of_numpy_are_densities() -> None:
    done = prune(net(), "magnitude", np.float32(0.5))
    assert done.masks.density == 0.5
    assert json.loads(json.dumps(done.record))["density"] == 0.5


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan"), True, "0.5"])
def test_densities_outside_the_unit_interval_are_refused(density: object) -> None:
    with pytest.raises(ValueError, match="kept share"):
        select({"w": torch.rand(4)}, density)  # type: ignore[arg-type]


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        select({"w": torch.tensor([1.0, float("nan")])}, 0.5)
    with pytest.raises(ValueError, match="did you mean layer"):
        select({"w": torch.rand(4)}, 0.5, scope="layers")
    with pytest.raises(ValueError, match="needs to know the axes"):
        select({"w": torch.rand(4)}, 0.5, shape="unit")
    with pytest.raises(ValueError, match="no scores"):
        select({}, 0.5)
