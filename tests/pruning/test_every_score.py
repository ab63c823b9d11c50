"""One harness for every score that has a name: what goes in comes out, and the ranking serves selection."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nucleate.pruning.prune import prune
from nucleate.pruning.scores import SCORES, Scores, scores
from nucleate.pruning.select import select

DATA_FIRST = ("snip", "grasp", "hutchinson", "fisher", "wanda", "synflow")


class Net(nn.Module):
    """A frozen layer, dropout, batch normalisation in mixed modes: all that scoring could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(6 * 9, 12)
        self.bn3 = nn.BatchNorm1d(12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.out(self.drop(torch.relu(self.bn3(self.fc(x.flatten(1))))))


def setting() -> tuple[Net, list[tuple[torch.Tensor, torch.Tensor]], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    net = Net()
    for p in net.parameters():
        p.data.normal_(0, 0.3, generator=generator)
    for b in net.buffers():
        if b.is_floating_point():
            b.copy_(b + torch.rand(b.shape, generator=generator))
    initial = {
        k: v + 0.1 * torch.randn(v.shape, generator=generator)
        for k, v in net.state_dict().items()
        if v.is_floating_point()
    }
    net.conv1.weight.requires_grad_(False)
    net.bn2.eval()
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    x = torch.randn(24, 1, 8, 8, generator=generator)
    y = torch.randint(3, (24,), generator=generator)
    return net, [(x[:16], y[:16]), (x[16:], y[16:])], initial


def state(net: nn.Module) -> dict[str, Any]:
    return {
        "state": {k: v.clone() for k, v in net.state_dict().items()},
        "modes": [m.training for m in net.modules()],
        "flags": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "torch": torch.random.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def score(method: str) -> tuple[Net, Scores]:
    net, batches, initial = setting()
    return net, scores(net, method, batches, initial=initial)


@pytest.mark.parametrize("method", SCORES)
def test_scoring_leaves_everything_as_it_was(method: str) -> None:
    net, batches, initial = setting()
    before = state(net)
    scores(net, method, batches, initial=initial)
    after = state(net)
    for key in before:
        assert same(before[key], after[key]), key


@pytest.mark.parametrize("method", SCORES)
def test_a_failing_score_leaves_everything_as_it_was(method: str) -> None:
    net, batches, _ = setting()
    before = state(net)
    with pytest.raises(ValueError, match="x"):
        scores(
            net,
            method,
            [*batches, (torch.zeros(4, 2, 8, 8), torch.zeros(4, dtype=torch.long))] if method in DATA else None,
            initial=None,
            layers="nothing like it: x",
        )
    if method in DATA:
        with pytest.raises(ValueError, match=r"cannot take inputs of shape \(., 2, 8, 8\)"):
            scores(net, method, [(torch.zeros(4, 2, 8, 8), torch.zeros(4, dtype=torch.long))])
    assert same(before, state(net))


@pytest.mark.parametrize("method", SCORES)
def test_scores_are_finite_shaped_and_repeatable(method: str) -> None:
    net, found = score(method)
    assert set(found) <= {"conv1.weight", "conv2.weight", "fc.weight"} and found
    for name, s in found.items():
        layout = found.layout[name]
        assert s.shape in (layout.shape, (layout.outputs,))
        assert bool(torch.isfinite(s).all()) and not s.requires_grad
        assert s.data_ptr() != net.get_parameter(name).data_ptr()
    again = score(method)[1]
    assert all(torch.equal(again[name], s) for name, s in found.items())
    assert found.record["method"] == method


@pytest.mark.parametrize("method", DATA_FIRST)
def test_gradients_are_taken_where_the_caller_has_turned_them_off(method: str) -> None:
    net, batches, initial = setting()
    with torch.no_grad():
        found = scores(net, method, batches, initial=initial)
    assert all(torch.equal(found[name], s) for name, s in score(method)[1].items())


@pytest.mark.parametrize("method", SCORES)
def test_selection_by_it_is_exact(method: str) -> None:
    _, found = score(method)
    whole_outputs = any(s.shape != found.layout[name].shape for name, s in found.items())
    if whole_outputs:
        with pytest.raises(ValueError, match="shape='unit'"):
            select(found, 0.5)
    masks = select(found, 0.5, scope="layer", shape="unit" if whole_outputs else "weight")
    for name, density in masks.densities.items():
        rows = found.layout[name].rows(masks[name])
        assert density == 0.5
        if whole_outputs:
            assert bool((rows == rows[:, :1]).all())


@pytest.mark.parametrize("method", SCORES)
def test_pruning_by_it_in_rounds_only_shrinks(method: str) -> None:
    net, batches, initial = setting()
    shape = "unit" if method in UNITS else "weight"
    first = prune(net, method, 0.5, batches=batches, initial=initial, scope="layer", shape=shape, rounds=2)
    second = prune(
        net, method, 0.25, batches=batches, initial=initial, scope="layer", shape=shape, masks=first.masks, rounds=1
    )
    assert second.masks.within(first.masks)
    for name, mask in second.masks.items():
        assert bool((net.get_parameter(name)[mask == 0] == 0).all())


@pytest.mark.parametrize("method", SCORES)
def test_wrapped_models_have_the_names_of_the_model_inside(method: str) -> None:
    net, batches, initial = setting()
    found = scores(nn.DataParallel(net), method, batches, initial=initial)
    assert set(found) == set(score(method)[1])


def test_every_score_says_what_it_needs() -> None:
    for method in SCORES:
        net, batches, initial = setting()
        if method in DATA:
            with pytest.raises(ValueError, match="needs data"):
                scores(net, method)
            with pytest.raises(ValueError, match="batches= is empty"):
                scores(net, method, iter([]))
            with pytest.raises(ValueError, match="pairs"):
                scores(net, method, [batches[0][0]])
        if method in INITIAL:
            with pytest.raises(ValueError, match="initial weights"):
                scores(net, method)
            with pytest.raises(ValueError, match="no weight"):
                scores(net, method, initial={k: v for k, v in initial.items() if k != "fc.weight"})


UNITS = {"taylor_unit", "apoz", "mean_activation", "l2_activation", "fpgm", "bn_scale", "expected_bn"}
DATA = {
    "snip",
    "snip_batches",
    "grasp",
    "grasp_batches",
    "grasp_abs",
    "taylor",
    "taylor_abs",
    "taylor_unit",
    "movement",
    "fisher",
    "hutchinson",
    "wanda",
    "apoz",
    "mean_activation",
    "l2_activation",
    "synflow",
    "path_counts",
}
INITIAL = {
    "large_init",
    "small_init",
    "magnitude_increase",
    "distance",
    "large_init_large_final",
    "small_init_small_final",
    "large_final_same_sign",
    "large_final_diff_sign",
    "magnitude_increase_same_sign",
    "magnitude_increase_diff_sign",
}


def test_a_users_score_works_the_same() -> None:
    net, batches, _ = setting()
    before = state(net)

    def reckless(given: Any) -> dict[str, torch.Tensor]:
        out = {name: w.detach().abs() * 2 for name, w in given.weights.items()}
        with torch.no_grad():
            for p in given.model.parameters():
                p.zero_()
        given.model.train()
        given.model(batches[0][0])
        return out

    found = scores(net, reckless)
    assert same(before, state(net))
    reference = scores(net, "magnitude")
    assert all(torch.equal(found[name], 2 * s) for name, s in reference.items())
    assert found.record["method"] == "reckless"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda g: {}, "scores nothing"),
        (lambda g: {"out.weight": torch.ones(3, 12)}, "which is not prunable"),
        (lambda g: {"fc.weight": torch.ones(2)}, r"shape \(2,\)"),
        (lambda g: {"fc.weight": torch.full((12, 54), float("nan"))}, "NaN"),
        (lambda g: {"fc.weight": torch.zeros(12, 54)}, r"every score of fc\.weight is zero"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores(setting()[0], function)


def test_bad_inputs_are_one_clear_line() -> None:
    net, batches, _ = setting()
    with pytest.raises(ValueError, match="did you mean snip"):
        scores(net, "snipp", batches)
    with pytest.raises(ValueError, match=r"no layer matches 'conv3'; nearest: conv"):
        scores(net, "magnitude", layers="conv3")
    with pytest.raises(ValueError, match="nothing to prune in ReLU"):
        scores(nn.ReLU(), "magnitude")
    with pytest.raises(ValueError, match="cannot judge outputs"):
        scores(net, "snip", [(batches[0][0], torch.zeros(5, dtype=torch.long))])
    broken = copy.deepcopy(net)
    broken.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"fc\.weight holds NaN"):
        scores(broken, "magnitude")
    hollow = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 2))
    hollow[0].weight = nn.Parameter(torch.empty(4, 0))
    with pytest.raises(ValueError, match=r"0.weight has no weights, its shape is \(4, 0\)"):
        scores(hollow, "magnitude")
    dead = copy.deepcopy(net)
    dead.bn3.weight.data.zero_()
    with pytest.raises(ValueError, match=r"every score of .* is zero: the layer is dead"):
        scores(dead, "snip", batches)
    for name, function in (("snip", lambda out, y: out), ("snip", lambda out, y: out.sum() * float("nan"))):
        with pytest.raises(ValueError, match="one finite number"):
            scores(net, name, batches, function)
