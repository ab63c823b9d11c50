"""The metric: the same numbers as the function, through shards, processes, casts and checkpoints."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torchmetrics import MetricCollection

from nucleate.geometry.collapse import Moments, collapse
from nucleate.probes.metric import NeuralCollapse

C, D = 5, 12


def points(n: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    return torch.randn(C, D, generator=torch.Generator().manual_seed(9))[y] + 0.5 * torch.randn(n, D, generator=g), y


def head() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(D, C)


def means() -> torch.Tensor:
    m = Moments(C, D)
    m.update(*points(seed=1))
    return m.means


def metric(**kwargs) -> NeuralCollapse:
    return NeuralCollapse(C, D, classifier=head(), **kwargs)


def fed(m: NeuralCollapse, *, batch: int = 64) -> NeuralCollapse:
    x, y = points()
    for i in range(0, len(x), batch):
        m.update(x[i : i + batch], y[i : i + batch])
    return m


def values(m: NeuralCollapse) -> dict[str, float]:
    return {k: v.item() for k, v in m.compute().items()}


@pytest.mark.parametrize("judged", [False, True])
def test_streamed_equals_the_function(judged):
    x, y = points()
    h = head()
    judge = means() if judged else None
    got = values(fed(metric(means=judge)))
    want = collapse(x, y, weight=h.weight, bias=h.bias, means=judge).asdict()
    missing = {k for k, v in want.items() if not math.isnan(v)} - set(got) - {"num_classes", "dim"}
    assert missing == (set() if judged else {"nc4", "ncc_accuracy", "nc4_ties", "boundary_mean", "boundary_spread"})
    for name, value in got.items():
        assert value == pytest.approx(want[name], rel=1e-6, abs=1e-12), name


def test_what_is_absent_has_a_reason():
    m = fed(metric())
    assert "nc4" not in m.compute() and m.reasons["nc4"] == "needs means="
    wide = NeuralCollapse(C, D, second_moment=False)
    wide.update(*points())
    assert "nc1" not in wide.compute() and "second_moment" in wide.reasons["nc1"]
    assert not NeuralCollapse(2, 4096).second_moment and NeuralCollapse(2, 2048).second_moment


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.to(torch.float32),
        lambda m: m.float(),
        lambda m: m.half(),
        lambda m: m.set_dtype(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: nn.ModuleList([m]).to(torch.float32)[0],
    ],
)
def test_casts_do_not_touch_the_sums(cast):
    want = values(fed(metric(means=means())))
    m = fed(metric(means=means()))
    assert all(t.dtype == torch.float64 for t in cast(m).metric_state.values())
    assert values(m) == want
    m.reset()
    cast(m)
    assert values(fed(m)) == want


def test_save_and_load(tmp_path: Path):
    m = fed(metric(means=means()))
    torch.save(m.state_dict(), tmp_path / "state.pt")
    other = metric(means=means())
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert values(other) == values(m)
    # Loading does not tie the metric to the tensors it was given.
    state = {k: v.clone() for k, v in m.state_dict().items()}
    kept = {k: v.clone() for k, v in state.items()}
    other.load_state_dict(state)
    fed(other)
    assert all(torch.equal(state[k], kept[k]) for k in kept)
    assert values(pickle.loads(pickle.dumps(m))) == values(m)


def test_forward_gives_the_batch_and_keeps_the_sum():
    m = metric()
    x, y = points()
    first = m(x[:100], y[:100])
    assert first["nc1"].item() == pytest.approx(collapse(x[:100], y[:100]).nc1, rel=1e-6)
    m(x[100:], y[100:])
    assert values(m)["nc1"] == pytest.approx(collapse(x, y).nc1, rel=1e-6)


def test_the_classifier_is_the_live_one_and_not_part_of_the_metric():
    h = head()
    m = NeuralCollapse(C, D, classifier=h)
    twin = m.clone()
    fed(m), fed(twin)
    before = values(m)["nc3"]
    with torch.no_grad():
        h.weight.copy_(means().float())
    m.reset(), twin.reset()
    fed(m), fed(twin)
    assert values(m)["nc3"] < 0.5 * before and values(twin) == values(m)
    assert not list(m.parameters()) and all(k.startswith("class_") for k in m.state_dict())
    assert copy.deepcopy(m)._weights()[0].data_ptr() == h.weight.data_ptr()
    pair = values(fed(NeuralCollapse(C, D, classifier=(h.weight.detach(), h.bias.detach()))))
    assert pair == values(m)


def test_in_a_collection():
    group = MetricCollection({"a": metric(), "b": metric(convention="wu2024")})
    x, y = points()
    group.update(x, y)
    group.update(x, y)
    out = group.compute()
    assert out["nc1"] if "nc1" in out else out["a_nc1"]
    lone = metric(convention="wu2024")
    lone.update(x, y)
    lone.update(x, y)
    assert out["b_nc3"].item() == pytest.approx(values(lone)["nc3"])


def test_bad_input():
    with pytest.raises(ValueError, match="weight must be"):
        NeuralCollapse(C, D + 1, classifier=head())
    with pytest.raises(ValueError, match="means must be"):
        metric(means=torch.zeros(C, D + 1))
    with pytest.raises(ValueError, match="zhu2021"):
        metric(means=means(), convention="zhu2021")
    with pytest.raises(ValueError, match="run from"):
        metric().update(torch.zeros(2, D), torch.tensor([0, C]))
    with pytest.raises(ValueError, match="NaN"):
        metric().update(torch.full((2, D), math.nan), torch.tensor([0, 1]))


def test_no_points():
    m = metric()
    with pytest.warns(UserWarning, match="before the ``update`` method"), pytest.raises(ValueError, match="no points"):
        m.compute()


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    x, y = points()
    half = slice(0, 70) if rank == 0 else slice(70, None)
    for judged in (False, True):
        m = metric(means=means() if judged else None)
        m.update(x[half][:40], y[half][:40])
        # What a training loop does to its modules between two steps of an epoch.
        state = {name: value.clone() for name, value in m.to(torch.float32).state_dict().items()}
        m = metric(means=means() if judged else None)
        m.load_state_dict(state)
        m.update(x[half][40:], y[half][40:])
        torch.save(values(m), f"{folder}/{judged}{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_that_cast_and_reload_equal_one(tmp_path: Path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for judged in (False, True):
        want = values(fed(metric(means=means() if judged else None)))
        assert "nc1" in want and ("nc4" in want) == judged
        for rank in range(2):
            got = torch.load(tmp_path / f"{judged}{rank}.pt", weights_only=True)
            assert got.keys() == want.keys()
            for name, value in got.items():
                assert value == pytest.approx(want[name], rel=1e-10, abs=1e-12), (judged, name)
