"""What is stacked with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.machine.tuning import Tuning
from nucleate.models.mlp import MLP
from nucleate.spec import TrainSpec
from nucleate.training import Replica, Stack, plan_stacks
from nucleate.training.plan import LARGEST, PADDING, stackable

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


class Odd(nn.Module):
    """Modules of a chain, run in a way of its own."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.relu = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()
        self.b, self.run = nn.Linear(8, 3), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def hidden(own: nn.Module, x: Tensor) -> Tensor:
    return own.relu(own.norm(own.a(x)))  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (lambda own, x: own.b(hidden(own, x)), True),
        (lambda own, x: own.b(x + hidden(own, x)), False),
        (lambda own, x: own.b(F.dropout(hidden(own, x), 0.9, own.training)), False),
        (lambda own, x: own.b(hidden(own, x)) * (0.5 if own.training else 1.0), False),
        (lambda own, x: own.b(hidden(own, x) + 1e-7 * torch.randn(len(x), 8)), False),
        (lambda own, x: own.b(hidden(own, x.view(-1, 1, 2, 4)[:, 0])), False),
    ],
    ids=["chain", "skip", "dropout", "training only", "noise", "images"],
)
def test_a_chain_is_told_by_its_forward_pass(run: Callable[[nn.Module, Tensor], Tensor], *, found: bool) -> None:
    net = Odd(run)
    nn.init.zeros_(net.b.weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state(), net.training
    assert stackable(net) == found
    assert all(torch.equal(value, before[0][name]) for name, value in net.state_dict().items())
    assert torch.equal(before[1], torch.get_rng_state()) and net.training == before[2]


def test_tied_frozen_and_extra_parameters_are_no_chains() -> None:
    tied, frozen, extra, buffered = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(4))
    tied[2].weight = tied[0].weight
    frozen[0].bias.requires_grad_(False)
    extra.register_parameter("scale", nn.Parameter(torch.ones(())))
    buffered.register_buffer("mean", torch.zeros(4))
    assert not any(map(stackable, (tied, frozen, extra, buffered)))
