"""What a comparison keeps for its pictures, and measured time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nucleate.pruning.masks import Masks
from nucleate.recipes.compare import recipe
from nucleate.report import page
from nucleate.spec import ModelSpec
from nucleate.studies import compare
from nucleate.studies.survivors import filters, inputs_kept, sizes


def test_filters_lie_side_by_side_and_the_emptiest_come_last() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(12.0).view(3, 1, 2, 2))
    mask = torch.ones(3, 1, 2, 2, dtype=torch.uint8)
    mask[0] = 0
    rows = {(at["row"], at["column"]): v for _, at, v in filters(net, Masks({"0.weight": mask}))}
    # Two in a row of five cells, a gap between; the top row is row 4.
    assert rows[4, 0] == 4 and rows[4, 1] == 5 and rows[3, 0] == 6
    assert rows[4, 3] == 8 and rows[1, 0] == 0 and (4, 2) not in rows and (2, 0) not in rows
    assert len(rows) == 12
    assert not filters(nn.Sequential(nn.Linear(2, 2)), Masks({"0.weight": torch.ones(2, 2, dtype=torch.uint8)}))


def test_sizes_are_shares_of_kept_weights_in_units_of_the_initial_deviation() -> None:
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 2.1, -2.1, 0.0]]))
    initial = {"0.weight": torch.tensor([[1.0, -1.0, 1.0, -1.0]])}
    std = float(initial["0.weight"].std())
    masks = Masks({"0.weight": torch.tensor([[0, 1, 1, 1]], dtype=torch.uint8)})
    found = {at["size"]: v for _, at, v in sizes(net, initial, ["0.weight"], masks)}
    assert sum(found.values()) == pytest.approx(1) and set(found.values()) == {1 / 3}
    assert any(abs(place - 2.1 / std) <= 0.1 for place in found)


def test_input_counts_need_a_linear_first_layer_on_pictures() -> None:
    masks = Masks({"w": torch.ones(2, 12, dtype=torch.uint8)})
    assert len(inputs_kept(masks, (3, 2, 2))) == 4
    assert {v for *_, v in inputs_kept(masks, (3, 2, 2))} == {6.0}
    assert inputs_kept(masks, (12,)) == []


def test_a_comparison_times_its_networks_and_draws_what_is_left(tmp_path: Path) -> None:
    spec = recipe("digits-mlp")
    spec = replace(
        spec,
        model=ModelSpec(width=16, depth=2),
        train=replace(spec.train, epochs=2),
        prune=replace(spec.prune, epochs=0, examples=64),
        densities=(0.5, 0.08),
        robustness=0,
        timing=8,
    )
    done = compare.run(spec, root=tmp_path)
    for level in (0, 1, 2):
        value = {r["metric"]: r["value"] for r in done.select(epoch=level, split="", layer="")}
        assert value["speedup"] == pytest.approx(value["seconds_dense"] / value["seconds"])
        assert value["speedup"] >= 1
    assert {r["epoch"] for r in done.select(metric="input_weights")} == {2}
    kept = sum(r["value"] for r in done.select(metric="input_weights"))
    assert kept == done.tensors("level-02")["first_layer_kept"].sum()
    assert {r["epoch"] for r in done.select(metric="weight_sizes")} == {0, 2}
    text = page([done], tmp_path / "page.html").read_text()
    for title in ("Accuracy against measured speed-up", "Kept share by layer, density 0.08", "Weights of each input"):
        assert title in text
    assert "First-layer filters" not in text
