"""Which replicas are worth stacking, and with which others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nucleate.training.chain import chain_of, layers_of
from nucleate.training.stacked import Replica

LARGEST = 50_000
"""Parameters up to which launching small operations, and not arithmetic, is what a CPU spends a step on."""
STACK_BYTES = 8 << 20
"""Weights, gradients and moments of one stack on a CPU; more falls out of its caches."""
PADDING = 1.5
"""The parameters of a stack, padding included, over its replicas' own."""


def plan_stacks(replicas: Sequence[Replica]) -> list[list[int]]:
    """Groups of replicas to be trained as one `Stack` each, by index; every index once.

    On a CPU small networks are grouped by depth, batch size, loss and optimizer, narrow with narrow; networks above
    50,000 parameters gain nothing from company and stay alone, as do those that are no chains (convolutions: grouped
    ones are slower than one after another), which `Training` trains. On a GPU size is no bound.

    >>> from nucleate.models.mlp import MLP
    >>> import torch
    >>> from nucleate.spec import TrainSpec
    >>> nets = [MLP(64, 10, width=w, depth=1) for w in (4, 500, 6, 4)]
    >>> plan_stacks([Replica(model=net, labels=torch.zeros(9).long(), spec=TrainSpec()) for net in nets])
    [[0, 3, 2], [1]]
    """
    alone: list[list[int]] = []
    kinds: dict[Any, list[tuple[int, int]]] = {}
    for index, replica in enumerate(replicas):
        count = sum(p.numel() for p in replica.model.parameters())
        if not stackable(replica.model):
            alone.append([index])
            continue
        layers, spec = layers_of(replica.model), replica.spec
        if spec.device == "cpu" and count > LARGEST:
            alone.append([index])
            continue
        shape = tuple((x.linear, x.norm, x.relu, x.bias) for x in layers)
        ends = layers[0].inputs, layers[-1].outputs
        key = (shape, ends, len(replica.labels), spec.batch_size, spec.loss, spec.optimizer, spec.device)
        kinds.setdefault(key, []).append((count, index))
    groups: list[list[int]] = []
    for key, members in kinds.items():
        group: list[int] = []
        own = 0
        for count, index in sorted(members):
            # Sorted by size, so that the newest is the widest and all others are padded to it.
            padded = count * (len(group) + 1)
            too_large = key[-1] == "cpu" and padded * 16 > STACK_BYTES
            if group and (padded > PADDING * (own + count) or too_large):
                groups.append(group)
                group, own = [], 0
            group.append(index)
            own += count
        groups.append(group)
    return sorted(groups + alone)


def stackable(model: nn.Module) -> bool:
    """Whether a network is a chain that a `Stack` trains: its modules are, and its forward pass does nothing else.

    >>> stackable(nn.Sequential(nn.Linear(4, 2))), stackable(nn.Conv2d(3, 8, 3))
    (True, False)
    """
    try:
        chain_of(model)
    except ValueError:
        return False
    return True
