"""What is stacked with what."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nucleate.machine.tuning import Tuning
from nucleate.models.mlp import MLP
from nucleate.spec import TrainSpec
from nucleate.training import Replica, Stack, plan_stacks
from nucleate.training.plan import LARGEST, PADDING

LABELS = torch.zeros(9).long()
ADAM = TrainSpec(optimizer="adam", lr=1e-3, batch_size=4, epochs=1)


def replica(model: nn.Module, **changes: object) -> Replica:
    return Replica(model=model, labels=LABELS, spec=replace(ADAM, **changes))  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(widths=st.lists(st.integers(1, 900), min_size=1, max_size=12))
def test_every_replica_is_in_one_group_and_padding_stays_small(widths: list[int]) -> None:
    made = [replica(MLP(64, 10, width=w, depth=1)) for w in widths]
    groups = plan_stacks(made)
    assert sorted(i for group in groups for i in group) == list(range(len(widths)))
    counts = [sum(p.numel() for p in r.model.parameters()) for r in made]
    for group in groups:
        assert len(group) * max(counts[i] for i in group) <= PADDING * sum(counts[i] for i in group)
        assert len(group) == 1 or max(counts[i] for i in group) <= LARGEST


def test_every_group_can_be_stacked() -> None:
    made = [
        replica(MLP(64, 10, width=8, depth=d, batchnorm=b), loss=loss)
        for d in (1, 2)
        for b in (True, False)
        for loss in ("mse", "cross-entropy")
    ]
    groups = plan_stacks(made * 2)
    assert len(groups) == 8 and all(len(group) == 2 for group in groups)
    for group in groups:
        Stack([(made * 2)[i] for i in group], torch.zeros(9, 64), 10, Tuning(threads=1))


def test_convolutions_are_never_stacked_on_a_cpu() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    assert plan_stacks([replica(net), replica(net)]) == [[0], [1]]
