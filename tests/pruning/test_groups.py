"""Grouped shapes: patterns, blocks, units, heads and layers, with what goes together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nucleate.pruning.layout import Layout
from nucleate.pruning.prune import prune
from nucleate.pruning.scores import Scores, scores
from nucleate.pruning.select import select


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(generator=generator)
    return model


LAYERS = {
    "linear": nn.Linear(16, 8),
    "conv": nn.Conv2d(4, 8, (2, 3)),
    "grouped": nn.Conv2d(8, 8, 2, groups=2),
    "depthwise": nn.Conv2d(8, 8, (2, 4), groups=8),
    "conv1d": nn.Conv1d(4, 8, 4),
    "transposed": nn.ConvTranspose2d(8, 4, 2),
    "grouped transposed": nn.ConvTranspose1d(8, 4, 4, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_hold_the_weights_of_one_output(name: str) -> None:
    model = nn.Sequential(filled(LAYERS[name]))
    layout = scores(model, "magnitude").layout["0.weight"]
    w = model[0].weight.detach().clone()
    rows = layout.rows(w)
    assert torch.equal(layout.unrows(rows), w)
    # What a row holds is what its output depends on, and nothing else.
    shape = (2, 8 if "trans" in name or "group" in name or name == "depthwise" else 4, 9, 9)
    x = torch.randn(2, 16) if name == "linear" else torch.randn(shape[: w.ndim])
    before = model(x)
    axis = -1 if name == "linear" else 1
    for output in range(layout.outputs):
        changed = rows.clone()
        changed[output] += 1
        model[0].weight.data.copy_(layout.unrows(changed))
        different = (model(x) != before).movedim(axis, 0).flatten(1).any(1)
        assert different.nonzero().flatten().tolist() == [output]
        model[0].weight.data.copy_(w)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pattern", ["2:4", "1:2", "3:4"])
def test_patterns_keep_the_largest_of_every_window(name: str, pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    model = nn.Sequential(filled(LAYERS[name]))
    found = scores(model, "magnitude")
    masks = select(found, n / m, shape=pattern)
    layout = found.layout["0.weight"]
    windows = layout.rows(masks["0.weight"]).reshape(layout.outputs, -1, m)
    assert bool((windows.sum(2) == n).all())
    values = layout.rows(found["0.weight"]).reshape(windows.shape)
    worst_kept = values.masked_fill(windows == 0, torch.inf).amin(2)
    best_gone = values.masked_fill(windows == 1, -torch.inf).amax(2)
    assert bool((worst_kept >= best_gone).all())


def test_patterns_refuse_what_does_not_fit() -> None:
    found = scores(filled(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))), "magnitude")
    for shape, density, message in (
        ("2:4", 0.5, "not a multiple of 4"),
        ("1:2", 0.4, "density must be that"),
        ("3:2", 0.5, "N must lie in 1..M"),
        ("1;2", 0.5, "no shape is named"),
    ):
        with pytest.raises(ValueError, match=message):
            select(found, density, shape=shape)
    with pytest.raises(ValueError, match="fixes the density of every layer"):
        select(found, 0.5, shape="1:2", scope="erk")


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_blocks_go_as_one(density: float, scope: str) -> None:
    model = filled(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Conv2d(5, 8, 3), nn.Flatten(), nn.Linear(8, 2)))
    found = scores(model, "magnitude")
    masks = select(found, density, shape="block:4x1", scope=scope)
    blocks = (20 * 10 + 8 * 45) // 4
    if scope == "global":
        assert masks.kept == 4 * int(density * blocks + 0.5)
    for name, mask in masks.items():
        rows = found.layout[name].rows(mask)
        tiles = rows.reshape(len(rows) // 4, 4, -1)
        assert bool((tiles == tiles[:, :1]).all())
        sums = found.layout[name].rows(found[name]).reshape(tiles.shape).double().sum(1)
        if scope == "layer" and density < 1:
            assert float(sums[tiles[:, 0] == 1].min()) >= float(sums[tiles[:, 0] == 0].max())
    with pytest.raises(ValueError, match="do not fill"):
        select(found, 0.5, shape="block:3x1")
    with pytest.raises(ValueError, match="holds no weights"):
        select(found, 0.5, shape="block:0x1")


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("shape", ["weight", "2:4", "block:4x1", "unit"])
@pytest.mark.parametrize("again", [False, True])
def test_prune_ranks_as_select_does_by_the_scores(method: str, shape: str, again: bool) -> None:
    # `prune` holds weights instead of scores: their signs must not show.
    model = filled(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)))
    batches = [(torch.randn(30, 16, generator=torch.Generator().manual_seed(0)), None)]
    earlier = (
        None if not again else prune(model, "random", 0.75, shape=shape.replace("2:4", "3:4"), scope="layer").masks
    )
    want = select(scores(model, method, batches, masks=earlier), 0.5, shape=shape, scope="layer")
    done = prune(model, method, 0.5, batches=batches, shape=shape, scope="layer", masks=earlier)
    assert want.kept < want.count and done.masks.keys() == want.keys()
    assert all(torch.equal(done.masks[name], mask) for name, mask in want.items())


def test_units_go_with_their_bias_and_normalisation() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 2),
    )
    filled(model)
    done = prune(model, "magnitude", 0.5, shape="channel", scope="layer")
    assert set(done.masks) == {"0.weight", "1.weight", "1.bias", "0.bias", "3.weight", "3.bias"}
    assert done.masks.coupled == {"1.weight", "1.bias", "0.bias", "3.bias"}
    assert done.masks.density == 0.5
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for last, name in ((3, "0.weight"), (5, "3.weight")):
            out = model.eval()[:last](x)
            gone = done.masks[name].flatten(1).amax(1) == 0
            assert int(gone.sum()) == len(gone) // 2
            assert bool((out[:, gone] == 0).all()) and bool((out[:, ~gone] != 0).any())


def test_units_of_all_layers_compare_by_their_mean_within_the_budget() -> None:
    model = filled(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 4)))
    found = scores(model, "magnitude")
    masks = select(found, 0.4, shape="unit")
    means = torch.cat([found[name].double().mean(1) for name in found])
    sizes = torch.cat([torch.full((len(found[name]),), found[name].shape[1]) for name in found])
    order = means.argsort(descending=True)
    kept = torch.cat([masks[name][:, 0] for name in found]).bool()
    count = int(kept.sum())
    assert set(order[:count].tolist()) == set(kept.nonzero().flatten().tolist())
    total = int(sizes[order[:count]].sum())
    assert total == masks.kept <= 360 < total + int(sizes[order[count]])


def test_equal_units_go_in_order_of_index() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].weight.data.fill_(0.5)
    for density in (0.2, 0.5, 0.9):
        rows = select(scores(model, "magnitude"), density, shape="unit", scope="layer")["0.weight"][:, 0]
        count = int(density * 6 + 0.5)
        assert rows.tolist() == [1] * count + [0] * (6 - count)


def test_unit_scores_rank_units() -> None:
    model = filled(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)))
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    found = scores(model, "l2_activation", [(x, None)])
    masks = select(found, 0.5, shape="unit")
    best = found["0.weight"].argsort(descending=True)[:4]
    assert set(masks["0.weight"][:, 0].nonzero().flatten().tolist()) == set(best.tolist())


class Attention(nn.Module):
    """Llama's names and grouped queries: four heads share two keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = 4, 2
        self.q_proj, self.k_proj = nn.Linear(8, 12), nn.Linear(8, 6)
        self.v_proj, self.o_proj = nn.Linear(8, 6), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q = self.q_proj(x).view(n, t, 4, 3).transpose(1, 2)
        k, v = (p(x).view(n, t, 2, 3).transpose(1, 2).repeat_interleave(2, 1) for p in (self.k_proj, self.v_proj))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).reshape(n, t, 12))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 8)
        self.lm_head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        return self.lm_head(x + self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)))


def test_heads_go_with_the_queries_that_share_their_keys() -> None:
    model = filled(Block())
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    # The first key and value head is worth little: with it go its two queries, and what reads them.
    for name, cut in (("q_proj", 6), ("k_proj", 3), ("v_proj", 3)):
        getattr(model.attn, name).weight.data[:cut] *= 0.01
    model.attn.o_proj.weight.data[:, :6] *= 0.01
    done = prune(model, "magnitude", 0.5, shape="head")
    assert set(done.masks) - done.masks.coupled == {f"attn.{c}_proj.weight" for c in "qkvo"}
    assert done.masks.density == 0.5
    assert done.masks["attn.q_proj.weight"][:, 0].tolist() == [0] * 6 + [1] * 6
    assert done.masks["attn.k_proj.weight"][:, 0].tolist() == [0] * 3 + [1] * 3
    assert done.masks["attn.o_proj.weight"][0].tolist() == [0] * 6 + [1] * 6
    assert done.masks["attn.q_proj.bias"].tolist() == [0] * 6 + [1] * 6
    assert "attn.o_proj.bias" not in done.masks
    with torch.no_grad():
        v = model.attn.v_proj(x)
    assert bool((v[..., :3] == 0).all()) and bool((v[..., 3:] != 0).any())


def test_hidden_units_of_an_mlp_go_together() -> None:
    model = filled(Block())
    found = scores(model, "magnitude", layers=["gate_proj", "up_proj", "down_proj"])
    masks = select(found, 0.5, shape="unit", scope="layer")
    gate, up, down = (masks[f"{c}_proj.weight"] for c in ("gate", "up", "down"))
    assert gate[:, 0].tolist() == up[:, 0].tolist()
    assert int(gate[:, 0].sum()) == 5
    columns = down.amax(0)
    assert columns.tolist() == gate[:, 0].tolist()


def test_heads_of_multi_head_attention() -> None:
    model = nn.Sequential(filled(nn.MultiheadAttention(8, 2, batch_first=True)), nn.Linear(8, 2))
    model[0].in_proj_weight.data[0:4] *= 0.01
    model[0].in_proj_weight.data[8:12] *= 0.01
    model[0].in_proj_weight.data[16:20] *= 0.01
    masks = select(scores(model, "magnitude"), 0.5, shape="head")
    assert masks["0.in_proj_weight"][:, 0].tolist() == ([0] * 4 + [1] * 4) * 3
    assert masks["0.in_proj_bias"].tolist() == ([0] * 4 + [1] * 4) * 3
    assert masks["0.out_proj.weight"][0].tolist() == [0] * 4 + [1] * 4


def test_layers_go_whole() -> None:
    model = filled(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    model[0].weight.data.mul_(0.1)
    masks = select(scores(model, "magnitude"), 0.5, shape="layer")
    assert masks.densities == {"0.weight": 0.0, "2.weight": 1.0}


def test_grouped_shapes_say_what_they_lack() -> None:
    model = filled(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    found = scores(model, "magnitude")
    with pytest.raises(ValueError, match="no attention heads are known"):
        select(found, 0.5, shape="head")
    with pytest.raises(ValueError, match="no shape is named 'filter'"):
        select(found, 0.5, shape="filter")
    with pytest.raises(ValueError, match="counts outlying single weights"):
        select(found, 0.5, shape="unit", scope="owl")
    units = Scores({"w": torch.rand(4)}, layout={"w": Layout("linear", (4, 3))})
    with pytest.raises(ValueError, match="scores whole outputs"):
        select(units, 0.5, shape="block:2x1")


@pytest.mark.parametrize("shape", ["unit", "block:2x1"])
def test_grouped_rounds_shrink(shape: str) -> None:
    model = filled(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2)))
    masks = None
    for density in (0.6, 0.3, 0.1):
        done = prune(model, "magnitude", density, shape=shape, scope="layer", masks=masks)
        assert masks is None or done.masks.within(masks)
        masks = done.masks


def test_pruned_weights_do_not_outrank_negative_scores_in_a_window() -> None:
    s = torch.tensor([[-3.0, -1.0, -2.0, 5.0]])
    held = Scores({"w": s}, layout={"w": Layout("linear", (1, 4))})
    earlier = {"w": torch.tensor([[1, 1, 0, 0]], dtype=torch.uint8)}
    assert select(held, 0.25, shape="1:4", masks=earlier)["w"].tolist() == [[0, 1, 0, 0]]
    # Where fewer are left than the pattern keeps, they all stay.
    assert select(held, 0.75, shape="3:4", masks=earlier)["w"].tolist() == [[1, 1, 0, 0]]
