"""Folding constants into biases and cutting what nobody reads, in one traced graph, until nothing more goes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from nucleate.compact.channels import Channels
from nucleate.compact.layers import (
    add_bias,
    cut_layer,
    cut_norm,
    groups_of,
    is_uneven,
    matrix,
    set_matrix,
    taps,
)


class Shrinker(Channels):
    """Shrinks the modules of one graph in place."""

    def run(self) -> None:
        """Fold and remove until nothing more goes."""
        while True:
            self._analyse()
            self._fold()
            if not self._remove():
                return

    # Constants go into biases.

    def _fold(self) -> None:
        for node in self.graph.graph.nodes:
            kind, module = self._kind(node)
            if kind != "layer" or module is None:
                continue
            constant = self.values[node.all_input_nodes[0]].constant
            weight, groups = matrix(module), groups_of(module)
            inputs, per_group = weight.shape[1], len(weight) // groups
            for g in range(groups):
                rows, own = slice(g * per_group, (g + 1) * per_group), constant[g * inputs : (g + 1) * inputs]
                known = ~own.isnan()
                if not known.any():
                    continue
                if not is_uneven(module):
                    shift = (taps(weight[rows][:, known].double()).sum(2) * own[known]).sum(1)
                    add_bias(module, rows, shift)
                    weight[rows, known] = 0
                    continue
                weight[rows, own == 0] = 0
                left = (known & (own != 0)).nonzero()[:, 0]
                if len(left) > 1:
                    # The border sees less of a constant than the middle: one channel stands for all of them.
                    one = left[own[left].abs().argmax()]
                    shape = [1, -1] + [1] * (weight.dim() - 2)
                    share = (own[left] / own[one]).view(shape)
                    total = (weight[rows][:, left].double() * share).sum(1).to(weight.dtype)
                    weight[rows, left] = 0
                    weight[rows, one] = total
            if not torch.equal(weight, matrix(module)):
                set_matrix(module, weight)

    # What nobody reads goes.

    def _remove(self) -> bool:
        used: dict[fx.Node, Tensor] = {n: torch.zeros(len(v.atoms), dtype=torch.bool) for n, v in self.values.items()}
        alive = {self._find(a) for a in self.kept}
        for node in reversed(self.graph.graph.nodes):
            own = used.get(node)
            if own is not None and node in self.values:
                atoms = self.values[node].atoms.tolist()
                own |= torch.tensor([self._find(a) in alive for a in atoms], dtype=torch.bool)
            kind, module = self._kind(node)
            if kind == "points":
                continue
            for source in node.all_input_nodes:
                if source not in used:
                    continue
                if own is None or kind == "other":
                    used[source][:] = True
                elif kind == "layer" and module is not None:
                    weight, groups = matrix(module), groups_of(module)
                    live = torch.where(own.view(-1, *[1] * (weight.dim() - 1)), weight, 0) != 0
                    read = taps(live).any(2).view(groups, -1, weight.shape[1]).any(1).reshape(-1)
                    used[source] |= read
                elif kind == "flatten":
                    used[source] |= own.view(len(used[source]), -1).any(1)
                elif kind == "cat":
                    start = 0
                    for part in cast(list[fx.Node], node.args[0]):
                        stop = start + len(used[part])
                        used[part] |= own[start:stop]
                        start = stop
                elif kind in ("sum", "product"):
                    if self._alike(node):
                        used[source] |= own
                    else:
                        used[source][:] = True
                else:
                    used[source] |= own
        for node, value in self.values.items():
            alive |= {self._find(a) for a in value.atoms[used[node]].tolist()}
        # A layer keeps one unit, dead as it is.
        for node, value in self.values.items():
            if self._kind(node)[0] == "layer" and not any(self._find(a) in alive for a in value.atoms.tolist()):
                alive.add(self._find(int(value.atoms[0])))
        return self._cut(alive)

    def _cut(self, alive: set[int]) -> bool:
        changed = False
        for node in self.graph.graph.nodes:
            kind, module = self._kind(node)
            if kind not in ("layer", "norm") or module is None:
                continue
            keep_in = self._alive(node.all_input_nodes[0], alive)
            keep_out = self._alive(node, alive)
            if bool(keep_in.all()) and bool(keep_out.all()):
                continue
            changed = True
            if kind == "norm":
                cut_norm(cast(_BatchNorm, module), keep_out)
            else:
                cut_layer(module, keep_in, keep_out)
        if changed:
            # Sizes changed: the shapes that flattening looks at did too.
            self._reshape(alive)
        return changed

    def _reshape(self, alive: set[int]) -> None:
        for node, value in self.values.items():
            meta = node.meta["tensor_meta"]
            shape = list(meta.shape)
            shape[value.axis] = int(self._alive(node, alive).sum())
            node.meta["tensor_meta"] = meta._replace(shape=torch.Size(shape))

    def _alive(self, node: fx.Node, alive: set[int]) -> Tensor:
        return torch.tensor([self._find(a) in alive for a in self.values[node].atoms.tolist()], dtype=torch.bool)
