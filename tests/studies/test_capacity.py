"""Training in subspaces: the weights stay in them, and all directions give the whole network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nucleate.data import load
from nucleate.models import build
from nucleate.models.mlp import MLP
from nucleate.runs import find_runs
from nucleate.spec import CapacitySpec, DataSpec, LadderSpec, ModelSpec, TrainSpec
from nucleate.studies import capacity
from nucleate.studies.ladder.arms import equal_compute_epochs
from nucleate.studies.ladder.masks import total_count
from nucleate.training.subspace import Subspace


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(6, 3, width=8, depth=1)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in weights.values()])


@pytest.mark.parametrize("kind", ["random", "mask"])
def test_moves_stay_in_as_many_directions(kind: str) -> None:
    net = network()
    inside = Subspace(net, 5, kind=kind, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    start = flat(dict(net.named_parameters()))
    assert torch.equal(flat(inside.weights()), start)
    moves = []
    for seed in range(12):
        with torch.no_grad():
            inside.coordinates.normal_(generator=torch.Generator().manual_seed(seed))
        moves.append(flat(inside.weights()) - start)
    assert int(torch.linalg.matrix_rank(torch.stack(moves).double(), atol=1e-4)) == 5
    if kind == "mask":
        assert int((torch.stack(moves) != 0).any(0).sum()) == 5
    assert torch.equal(flat(dict(net.named_parameters())), start), "the network itself never moves"


def test_the_columns_of_a_random_subspace_have_unit_length_and_are_nearly_orthogonal() -> None:
    net = MLP(64, 10, width=200, depth=1)
    inside = Subspace(net, 20, kind="random", generator=torch.Generator().manual_seed(1))
    total = len(inside.start)
    columns = torch.zeros(total, 20)
    for index, sign in zip(inside.index, inside.sign, strict=True):
        columns[torch.arange(total), index] += sign
    gram = columns.T @ columns
    assert gram.diagonal().numpy() == pytest.approx(1.0, abs=0.1)
    assert float((gram - torch.diag(gram.diagonal())).abs().max()) < 0.05


def test_the_gradient_is_the_projected_one() -> None:
    net = network()
    inside = Subspace(net, 7, kind="random", generator=torch.Generator().manual_seed(1), mixing=3)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    inside(x).square().sum().backward()
    net(x).square().sum().backward()
    g = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    expected = torch.zeros(7)
    for index, sign in zip(inside.index, inside.sign, strict=True):
        expected.index_add_(0, index, sign * g)
    assert inside.coordinates.grad is not None
    assert torch.allclose(inside.coordinates.grad, expected, rtol=1e-4, atol=1e-5)


def test_dimensions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension between 1 and 83, not 84"):
        Subspace(network(), 84, kind="mask", generator=torch.Generator())


def small(**fields: object) -> CapacitySpec:
    return CapacitySpec(
        **{
            "recipe": "small",
            "data": DataSpec(name="digits", train_size=300, test_size=100),
            "model": ModelSpec(name="mlp", width=32, depth=1),
            "train": TrainSpec(
                optimizer="adam", lr=0.05, weight_decay=0.0, schedule="cosine", epochs=8, batch_size=50, threads=1
            ),
            "dimensions": (3, 200),
            **fields,
        }  # type: ignore[arg-type]
    )


def test_more_directions_are_better(tmp_path: Path) -> None:
    run = capacity.run(small(dense_lr=0.01), root=tmp_path, threads=1)
    accuracy = {(r["arm"], r["dimension"]): r["value"] for r in run.records}
    assert set(accuracy) == {("dense", 2410), *((arm, d) for arm in ("random", "mask") for d in (3, 200))}
    assert accuracy["random", 200] > accuracy["random", 3] + 0.2
    assert accuracy["dense", 2410] > 0.8


def test_a_killed_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = capacity.run(small(), root=tmp_path / "whole", threads=1).records
    original, calls = capacity._trained, []

    def dies(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(capacity, "_trained", dies)
    with pytest.raises(KeyboardInterrupt):
        capacity.run(small(), root=tmp_path / "killed", threads=1)
    assert capacity.run(small(), root=tmp_path / "killed", threads=1).records == whole


def test_batch_normalisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside a subspace"):
        capacity.run(small(model=ModelSpec(name="mlp", width=8, depth=1, batchnorm=True)), root=tmp_path)


PARENTS = CapacitySpec(
    recipe="parents",
    seed=100,
    data=DataSpec(name="digits", train_size=200, test_size=60),
    model=ModelSpec(name="lenet", init="glorot"),
    train=TrainSpec(optimizer="adam", lr=5e-3, epochs=2, batch_size=40, schedule="constant", threads=1),
    dimensions=(),
    parents=(12, 20),
    weights=500,
    ladder=LadderSpec(validation=40),
)


def test_every_parent_is_cut_to_the_same_number_of_weights_and_compared_at_it(tmp_path: Path) -> None:
    run = capacity.run(PARENTS, root=tmp_path, threads=1)
    rows = run.select(metric="accuracy")
    assert {(r["width"], r["arm"]) for r in rows} == {
        (width, arm) for width in (12, 20) for arm in ("ticket", "dense-small", "dense-small-longer")
    }
    for row in rows:
        if row["arm"] == "ticket":
            assert abs(row["weights"] - 500) <= 3
            ladder = next(r for r in find_runs(tmp_path) if r.spec["recipe"] == f"parents-parent-{row['width']}")
            own = ladder.select(metric="stop_accuracy", arm="ticket", level=row["level"])
            assert row["value"] == own[0]["value"]
        else:
            # 69 weights a unit of width.
            assert row["weights"] == pytest.approx(500, abs=50)
    assert "width     12  ticket" in capacity.table(run)


def test_a_longer_small_network_costs_what_the_ladder_costs() -> None:
    data = load(PARENTS.data)
    ladder = capacity.parent_ladder(PARENTS, 20, data)
    parent = build(ladder.model, data.input_shape, data.num_classes, generator=torch.Generator())
    level = ladder.ladder.rounds
    counts = [total_count(parent, ladder.ladder, n) for n in range(level + 1)]
    epochs = equal_compute_epochs(ladder, parent, level)
    assert counts[0] == 64 * 20 + 20 * 7 + 7 * 10
    assert 0 <= epochs * counts[-1] - 2 * sum(counts) < counts[-1]


def test_a_parent_no_larger_than_its_ticket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wider parents or fewer weights"):
        capacity.run(replace(PARENTS, parents=(3,)), root=tmp_path)
    with pytest.raises(ValueError, match="dimensions, parents, or both"):
        capacity.run(replace(PARENTS, parents=()), root=tmp_path)
