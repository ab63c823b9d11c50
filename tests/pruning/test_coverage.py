"""What is prunable, skipped, tied and unsupported, and why, in every kind of model."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from nucleate.pruning.coverage import coverage, matching
from nucleate.pruning.prune import prune
from nucleate.pruning.scores import scores
from nucleate.pruning.select import select


def statuses(model: nn.Module, **options: Any) -> dict[str, str]:
    return {row.name: row.status for row in coverage(model, **options).rows}


def small(middle: nn.Module, inputs: int = 4, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, inputs), middle, nn.Linear(outputs, 2))


KNOWN: dict[str, tuple[nn.Module, str]] = {
    "linear": (nn.Linear(4, 4), "weight"),
    "conv1d": (nn.Conv1d(4, 4, 3), "weight"),
    "conv2d": (nn.Conv2d(4, 4, 3), "weight"),
    "conv3d": (nn.Conv3d(4, 4, 3), "weight"),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2), "weight"),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), "weight"),
    "transposed1d": (nn.ConvTranspose1d(4, 4, 3), "weight"),
    "transposed2d": (nn.ConvTranspose2d(4, 4, 3, groups=2), "weight"),
    "transposed3d": (nn.ConvTranspose3d(4, 4, 3), "weight"),
    "attention": (nn.MultiheadAttention(4, 2), "in_proj_weight"),
    "attention of other widths": (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), "k_proj_weight"),
    "lstm": (nn.LSTM(4, 4), "weight_hh_l0"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_layers_are_pruned_once(name: str) -> None:
    module, weight = KNOWN[name]
    model = small(module)
    found = statuses(model)
    assert found[f"1.{weight}"] == "prunable"
    assert all(status != "unsupported" for status in found.values())
    done = prune(model, "magnitude", 0.5)
    assert done.masks.kept == int(0.5 * done.coverage.prunable + 0.5)
    assert int((model.get_parameter(f"1.{weight}") != 0).sum()) == int(done.masks[f"1.{weight}"].sum())


def test_the_default_leaves_out_biases_norms_embeddings_and_the_output() -> None:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(10, 4),
            "fc": nn.Linear(4, 4),
            "ln": nn.LayerNorm(4),
            "bn": nn.BatchNorm1d(4),
            "gn": nn.GroupNorm(2, 4),
            "rms": nn.RMSNorm(4),
            "out": nn.Linear(4, 2),
        }
    )
    found = coverage(model)
    assert [row.name for row in found.rows if row.status == "prunable"] == ["fc.weight"]
    assert {row.why for row in found.rows if row.status == "skipped"} == {"bias", "norm", "embedding", "output layer"}
    assert (found.prunable, found.parameters, found.output) == (16, sum(p.numel() for p in model.parameters()), "out")
    for extra, names in (
        ("bias", {"fc.bias", "out.bias"}),
        ("output", {"out.weight"}),
        ("embedding", {"embed.weight"}),
        ("norm", {f"{n}.{p}" for n in ("ln", "bn", "gn") for p in ("weight", "bias")} | {"rms.weight"}),
    ):
        now = {n for n, s in statuses(model, include=(extra,)).items() if s == "prunable"}
        assert now == {"fc.weight"} | names
        masks = select(scores(model, "random", include=(extra,)), 0.5, scope="layer")  # type: ignore[arg-type]
        assert set(masks) == now
    with pytest.raises(ValueError, match="include knows"):
        coverage(model, include=("biases",))  # type: ignore[arg-type]


def test_a_tied_weight_is_one_weight_under_its_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    model = Tied()
    found = coverage(model)
    assert {r.name: r.status for r in found.rows if r.name.endswith("weight")} == {
        "a.weight": "prunable",
        "b.weight": "tied",
        "c.weight": "skipped",
    }
    assert found.layouts["a.weight"].ties == ("b.weight",) and found.prunable == 16
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    done = prune(model, "snip", 0.25, batches=[(x, torch.zeros(8, dtype=torch.long))])
    assert list(done.masks) == ["a.weight"] and done.masks.kept == 4
    assert model.a.weight is model.b.weight and int((model.b.weight != 0).sum()) == 4
    energy = scores(model, "wanda", [(x, None)])["a.weight"]
    with torch.no_grad():
        hidden = torch.relu(model.a(x))
        norms = (x.double().square().sum(0) + hidden.double().square().sum(0)).sqrt()
    torch.testing.assert_close(energy, model.a.weight.detach().abs().double() * norms)


def test_a_weight_tied_to_an_embedding_is_left_out_with_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc, self.head = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

    found = coverage(Tied())
    assert {r.name: (r.status, r.why) for r in found.rows} == {
        "embed.weight": ("skipped", "embedding"),
        "fc.weight": ("prunable", ""),
        "fc.bias": ("skipped", "bias"),
        "head.weight": ("tied", "the same tensor as embed.weight"),
    }
    both = coverage(Tied(), include=("embedding",))
    row = next(r for r in both.rows if r.name == "embed.weight")
    assert row.status == "skipped" and "tied to head.weight" in row.why
    assert "embed.weight" in coverage(Tied(), include=("embedding", "output")).layouts


def test_what_is_not_known_is_listed_and_nothing_at_all_is_an_error() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(3, 3))

    with pytest.raises(ValueError, match="nothing to prune in Mine: 1 x Mine is not a layer whose axes are known"):
        coverage(Mine())
    assert statuses(nn.Sequential(Mine(), nn.Linear(3, 3), nn.Linear(3, 2)))["0.matrix"] == "unsupported"
    with pytest.raises(ValueError, match="nothing to prune in ReLU: it has no parameters"):
        coverage(nn.ReLU())
    with pytest.raises(ValueError, match="2 x norm"):
        coverage(nn.Sequential(nn.LayerNorm(3)))
    with pytest.raises(ValueError, match="run the model once"):
        coverage(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)))
    hooked = small(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    assert "unsupported" in statuses(hooked).values()
    pruned = small(nn.Linear(4, 4))
    l1_unstructured(pruned[1], "weight", 0.5)  # type: ignore[no-untyped-call]
    row = next(r for r in coverage(pruned).rows if r.name == "1.weight_orig")
    assert row.status == "unsupported" and "remove()" in row.why


def test_layers_are_limited_by_names_globs_and_patterns() -> None:
    model = nn.ModuleDict({"block1": small(nn.Linear(4, 4)), "block2": small(nn.Linear(4, 4)), "out": nn.Linear(2, 2)})
    for layers, names in (
        ("block1", {"block1.0", "block1.1", "block1.2"}),
        (["block1.0", "block2.1"], {"block1.0", "block2.1"}),
        ("*.1", {"block1.1", "block2.1"}),
        (re.compile(r"block\d\.0"), {"block1.0", "block2.0"}),
    ):
        assert {n.removesuffix(".weight") for n in coverage(model, layers=layers).layouts} == names  # type: ignore[arg-type]
    rows = {r.name: r.why for r in coverage(model, layers="block1").rows}
    assert rows["block2.0.weight"] == "not among the layers asked for"
    with pytest.raises(ValueError, match=r"no layer matches 'blok1'; nearest: block"):
        coverage(model, layers="blok1")
    with pytest.raises(ValueError, match=r"nothing to prune .* output layer"):
        coverage(model, layers="out")
    assert matching(model, ["block1*"]) == ["block1", "block1.0", "block1.1", "block1.2"]


def test_wrapped_models_are_looked_into() -> None:
    model = small(nn.Linear(4, 4))
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert list(coverage(wrapped).layouts) == ["0.weight", "1.weight"]
        assert prune(wrapped, "magnitude", 0.5).masks.density == 0.5


def test_the_report_prints_every_parameter() -> None:
    text = str(coverage(small(nn.Linear(4, 4))))
    assert "28 of 46 parameters prunable" in text and "2.weight" in text and "output layer" in text
