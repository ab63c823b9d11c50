"""Masks hold: through every optimizer, accumulation, clipping, resume, copies and compilation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from nucleate.pruning.masks import Masks
from nucleate.pruning.scores import scores
from nucleate.pruning.select import select

OPTIMIZERS = {
    "momentum": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
    "nesterov with decay": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda ps: torch.optim.Adam(ps, 0.01),
    "adam with decay": lambda ps: torch.optim.Adam(ps, 0.01, weight_decay=0.1),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.01, weight_decay=0.1),
    "fused adam": lambda ps: torch.optim.Adam(ps, 0.01, fused=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, 0.01, momentum=0.9),
}


def problem() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor, Masks]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    for p in model.parameters():
        p.data.normal_(0, 0.3, generator=generator)
    x = torch.randn(32, 12, generator=generator)
    masks = select(scores(model, "random", include=("output",)), 0.3, scope={"0.weight": 0.3, "2.weight": 40})
    return model, x, torch.randint(3, (32,), generator=generator), masks


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_zero_and_live_ones_move(name: str) -> None:
    model, x, y, masks = problem()
    masks.apply(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    start = copy.deepcopy(model.state_dict())
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        masks.apply(model)
    for key, mask in masks.items():
        w = model.state_dict()[key]
        assert bool((w[mask == 0] == 0).all())
        live = (mask == 1) & (start[key] != 0)
        for side in (live & (start[key] < 0), live & (start[key] > 0)):
            assert bool((w[side] != start[key][side]).all())


def test_a_live_weight_of_exactly_zero_trains_and_counts_as_kept() -> None:
    model, x, y, masks = problem()
    masks["2.weight"][0] = 1
    model[2].weight.data[0] = 0.0
    kept = masks.kept
    masks.apply(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    masks.apply(model)
    assert float((model[2].weight[0] != 0).double().mean()) > 0.5
    assert masks.kept == kept


def test_the_state_of_pruned_weights_is_cleared_on_request() -> None:
    model, x, y, masks = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    masks.apply(model, optimizer)
    for name, mask in masks.items():
        state = optimizer.state[model.get_parameter(name)]
        for key in ("exp_avg", "exp_avg_sq"):
            assert bool((state[key][mask == 0] == 0).all())
            assert bool((state[key][mask == 1] != 0).any())
        assert float(state["step"]) == 1


def test_gradients_of_pruned_weights_leave_the_norm() -> None:
    model, x, y, masks = problem()
    masks.apply(model)
    nn.functional.cross_entropy(model(x), y).backward()
    masks.apply_to_gradients(model)
    for name, mask in masks.items():
        grad = model.get_parameter(name).grad
        assert grad is not None
        assert bool((grad[mask == 0] == 0).all()) and bool((grad[mask == 1] != 0).any())


def test_copies_and_pickles_keep_everything() -> None:
    model, x, _, masks = problem()
    masks.apply(model)
    keys = list(model.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(copied.state_dict()) == keys
        assert torch.equal(copied(x), model(x))
    for twin in (copy.deepcopy(masks), pickle.loads(pickle.dumps(masks)), masks.clone()):
        assert isinstance(twin, Masks)
        assert all(torch.equal(twin[name], mask) for name, mask in masks.items())
        assert all(twin[name].data_ptr() != mask.data_ptr() for name, mask in masks.items())


def test_masks_are_counted_and_compared() -> None:
    a = Masks({"u": torch.tensor([1, 1, 0, 0]), "v": torch.tensor([True, False])})
    b = Masks({"u": torch.tensor([0.0, 1.0, 1.0, 0.0]), "v": torch.tensor([False, True])})
    assert (a.kept, a.count, a.density, a.densities) == (3, 6, 0.5, {"u": 0.5, "v": 0.5})
    assert a.compare(b) == {"all": 1 / 5, "u": 1 / 3, "v": 0.0}
    assert a.compare(a)["all"] == 1.0
    assert {m.dtype for m in (*a.values(), *b.values())} == {torch.uint8}
    assert Masks({"u": torch.zeros(3), "v": torch.ones(1)}).emptied == ["u"]
    coupled = Masks({"u": torch.tensor([1, 0]), "bias": torch.tensor([0, 0])}, coupled=frozenset({"bias"}))
    assert (coupled.density, coupled.count) == (0.5, 2)


def test_masks_that_fit_nothing_are_refused() -> None:
    model, _, _, masks = problem()
    with pytest.raises(ValueError, match="nowhere"):
        Masks({"nowhere": torch.ones(2)}).apply(model)
    with pytest.raises(ValueError, match=r"\(2,\), its weight \(16, 12\)"):
        Masks({"0.weight": torch.ones(2)}).apply(model)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        Masks({"w": torch.tensor([0.5, 1.0])})
    with pytest.raises(ValueError, match="differ"):
        masks.compare({"0.weight": masks["0.weight"]})
