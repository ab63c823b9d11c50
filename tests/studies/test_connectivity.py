"""Linear mode connectivity: exact zeros, a hand-made barrier, pairs that share everything but their noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nucleate.data import load
from nucleate.machine.tuning import Tuning
from nucleate.models import build
from nucleate.spec import ConnectivitySpec, DataSpec, LadderSpec, ModelSpec, TrainSpec
from nucleate.studies import connectivity, tickets

ONE = Tuning(threads=1)


def small(**fields: Any) -> ConnectivitySpec:
    return ConnectivitySpec(
        **{
            "recipe": "small",
            "seed": 100,
            "data": DataSpec(name="digits", train_size=240, test_size=80),
            "model": ModelSpec(name="mlp", width=16, depth=1),
            "train": TrainSpec(
                optimizer="sgd", lr=0.1, epochs=3, batch_size=40, schedule="constant", threads=1, precision="fp32"
            ),
            "ladder": LadderSpec(validation=40),
            "points": 5,
            **fields,
        }
    )


@pytest.mark.parametrize("batchnorm", [False, True])
def test_a_network_and_itself_have_no_barrier(batchnorm: bool) -> None:
    data = load(small().data)
    spec = ModelSpec(name="mlp", width=8, depth=1, batchnorm=batchnorm)
    model = build(spec, data.input_shape, 10, generator=torch.Generator().manual_seed(0))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = list(connectivity.line(model, state, state, data, ONE, 7))
    barriers = {(n["metric"], n["statistics"]): v for n, v in found if "barrier" in str(n["metric"])}
    assert len(barriers) == (4 if batchnorm else 2)
    assert set(barriers.values()) == {0.0}
    assert {v for n, v in found if n["metric"] == "distance"} == {0.0}


def test_statistics_of_a_network_that_drops_units_are_the_same_again() -> None:
    inputs, found = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), []
    for _ in range(2):
        model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(6))
        before = torch.get_rng_state()
        connectivity._estimate(model, inputs)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(model[1].running_mean.clone())
        with torch.random.fork_rng():
            torch.rand(3)
    assert torch.equal(*found)


def test_networks_with_permuted_units_have_one() -> None:
    """The same function at both ends; halfway the units no longer fit together."""
    data = load(small().data)
    model = build(
        ModelSpec(name="mlp", width=32, depth=1), data.input_shape, 10, generator=torch.Generator().manual_seed(0)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_inputs), data.train_labels).backward()
        optimizer.step()
    first = {k: v.clone() for k, v in model.state_dict().items()}
    order = torch.arange(32).roll(7)
    second = dict(first)
    for name in ("hidden.0.linear.weight", "hidden.0.linear.bias"):
        second[name] = first[name][order]
    second["classifier.weight"] = first["classifier.weight"][:, order]
    found = {
        str(n["metric"]): v for n, v in connectivity.line(model, first, second, data, ONE, 5) if "position" not in n
    }
    ends = [v for n, v in connectivity.line(model, first, second, data, ONE, 5) if n.get("position") in (0.0, 1.0)]
    assert ends[0] == pytest.approx(ends[1])
    assert found["error_barrier"] > 0.1
    assert found["loss_barrier"] > 0.1


def test_copies_that_part_at_the_end_are_the_same(tmp_path: Path) -> None:
    run = connectivity.run(small(steps=(0, 18)), root=tmp_path, threads=1)
    far, near = (run.select(k=k, metric=m)[0]["value"] for k, m in ((0, "distance"), (18, "distance")))
    assert far > 0
    assert near == 0.0
    assert [r["value"] for r in run.select(k=18, metric="error_barrier")] == [0.0]


def test_a_ticket_pair_carries_the_ladders_mask(tmp_path: Path) -> None:
    spec = small(levels=(0, 2), model=ModelSpec(name="lenet", width=12))
    run = connectivity.run(spec, root=tmp_path, threads=1)
    ladder = tickets.run(connectivity._ladder(spec, 0), root=tmp_path, threads=1)
    masks, _ = tickets.read_ticket(ladder, 2, spec.seed)
    assert {r["level"]: r["density"] for r in run.records} == {0: 1.0, 2: masks.density}


def test_a_step_beyond_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beyond the training's end at step 18"):
        connectivity.run(small(steps=(19,)), root=tmp_path, threads=1)
    with pytest.raises(ValueError, match="step 15 lies beyond the training's end at step 15"):
        connectivity.run(small(steps=(15,), levels=(0, 1)), root=tmp_path, threads=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="from 0 on"):
        connectivity.run(replace(small(), steps=()), root=tmp_path, threads=1)
