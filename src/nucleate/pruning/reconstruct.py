"""SparseGPT: prune a layer and let its other weights make up for what went (Frantar, Alistarh 2023)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.probes.tap import listen, unwrap
from nucleate.pruning.coverage import Extra, coverage, parameters
from nucleate.pruning.criteria.activations import tokens
from nucleate.pruning.criteria.given import Batches, Given, run
from nucleate.pruning.densities import round_half_up
from nucleate.pruning.layout import Layout
from nucleate.pruning.masks import Masks
from nucleate.pruning.prune import Pruning
from nucleate.pruning.scores import untouched
from nucleate.pruning.select import check_density
from nucleate.pruning.threshold import Ranked, finite, keep

BLOCK = 128
"""Columns whose mask is chosen together."""
DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""

_PATTERN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Repaired:
    """One layer, pruned and repaired."""

    weight: Tensor
    """(outputs, inputs), zero where the mask is."""
    mask: Tensor
    damping: float
    """Share of the mean diagonal that was added: more than asked for where the Hessian was singular."""
    dead: int
    """Inputs that were zero on all data: their weights are zero."""


class InputGram:
    """Sum of x x^T over what a layer receives, in float32 or wider; convolutions see unfolded patches.

    >>> gram = InputGram(nn.Linear(2, 3), Layout(kind="linear", shape=(3, 2)))
    >>> gram.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> gram.hessian.tolist()  # 2 X^T X / 2 rows
    [[10.0, 2.0], [2.0, 4.0]]
    """

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        if layout.kind not in ("linear", "conv1d", "conv") or layout.groups != 1 or len(layout.shape) not in (2, 4):
            raise ValueError(f"SparseGPT knows linear maps and ungrouped Conv2d, not {type(module).__name__}")
        self.module = module
        self.layout = layout
        self.rows = 0
        weight = next(module.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.sum = torch.zeros(layout.inputs, layout.inputs, dtype=dtype, device=weight.device)

    @torch.no_grad()
    def add(self, x: Tensor, kept: Tensor | None = None) -> None:
        """Count one batch of inputs; `kept` is an (N, T) mask of the positions that are not padding."""
        if isinstance(self.module, nn.Conv2d):
            conv = self.module
            padding = conv.padding
            if conv.padding_mode != "zeros" or isinstance(padding, str):
                mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
                x = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
                padding = (0, 0)
            patches = nn.functional.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)
            rows = patches.transpose(1, 2).flatten(0, 1)
        else:
            rows = x[kept] if kept is not None and x.shape[:2] == kept.shape else x.flatten(0, -2)
        rows = rows.to(self.sum.dtype)
        self.sum.addmm_(rows.T, rows)
        self.rows += len(rows)

    @property
    def hessian(self) -> Tensor:
        """2 E[x x^T]: the Hessian of the mean squared error of one output."""
        if not self.rows:
            raise ValueError("no input was seen")
        return self.sum * (2 / self.rows)


@torch.no_grad()
def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    density: float,
    *,
    shape: str = "weight",
    block: int = BLOCK,
    damping: float = DAMPING,
    live: Tensor | None = None,
) -> Repaired:
    """Prune a matrix from left to right, each column's error spread over the columns after it.

    With U the upper Cholesky factor of the inverse Hessian, a weight's score is w^2 / U_jj^2, the error left when all
    weights to its right make up for it; after column j the columns from it on fall by ((w - kept w) / U_jj) U_j. Masks
    are chosen block by block over all rows, by the scores when the block is reached (for N:M, when the group of M is),
    with exact counts: round(density x rows x columns) in all, spread evenly over blocks.

    Args:
        weight: (outputs, inputs).
        hessian: (inputs, inputs), any multiple of E[x x^T].
        density: kept share; for N:M it must be N/M.
        shape: "weight" or "N:M".
        block: columns in a block; a multiple of M.
        damping: added to the diagonal as a share of its mean, tenfold until the Hessian can be inverted.
        live: 0 where earlier rounds have pruned.

    Raises:
        ValueError: for a density, shape or Hessian that does not fit, or one that is not finite.

    >>> w = torch.tensor([[3.0, 1.0, -2.0, 0.5]])
    >>> sparsegpt(w, torch.eye(4), 0.5).weight.tolist()  # nothing to repair with: magnitude
    [[3.0, 0.0, -2.0, 0.0]]
    """
    density = check_density(density)
    rows, columns = weight.shape
    if hessian.shape != (columns, columns) or not finite(hessian):
        raise ValueError(f"the Hessian must be finite and ({columns}, {columns}), not {tuple(hessian.shape)}")
    pattern = _pattern(shape, density, columns, block)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    w = weight.to(dtype, copy=True)
    hessian = hessian.to(dtype)
    dead = hessian.diagonal() == 0
    w[:, dead] = 0
    upper, damping = _inverse_factor(hessian, dead, damping)
    mask = torch.zeros(rows, columns, dtype=torch.uint8, device=w.device)
    ends = [round_half_up(density * rows * min(end, columns)) for end in range(0, columns + block, block)]
    for index, start in enumerate(range(0, columns, block)):
        stop = min(start + block, columns)
        part, factor, kept = w[:, start:stop], upper[start:stop, start:stop], mask[:, start:stop]
        alive = None if live is None else live[:, start:stop]
        if pattern is None:
            score = part.square() / factor.diagonal().square()
            count = ends[index + 1] - ends[index]
            kept.copy_(keep({"": Ranked(score, None if alive is None else alive.contiguous())}, count)[""])
        errors = torch.zeros_like(part)
        for j in range(stop - start):
            if pattern is not None and j % pattern[1] == 0:
                score = part[:, j : j + pattern[1]].square() / factor.diagonal()[j : j + pattern[1]].square()
                if alive is not None:
                    score = score.masked_fill(alive[:, j : j + pattern[1]] == 0, -1)
                order = score.sort(dim=1, descending=True, stable=True).indices[:, : pattern[0]]
                kept[:, j : j + pattern[1]].scatter_(1, order, 1)
            errors[:, j] = part[:, j] * (1 - kept[:, j]) / factor[j, j]
            part[:, j:].addr_(errors[:, j], factor[j, j:], alpha=-1)
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    # What a column loses is taken from itself too: rounding aside it is zero, and here it is made so.
    return Repaired(w.mul_(mask).to(weight.dtype), mask, damping, int(dead.sum()))


def reconstruct(
    model: nn.Module,
    batches: Batches,
    density: float,
    *,
    shape: str = "weight",
    layers: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None = None,
    include: Sequence[Extra] = (),
    masks: Masks | None = None,
    damping: float = DAMPING,
) -> Pruning:
    """SparseGPT on every prunable layer, in order, each on what it receives from the pruned ones before it.

    Every layer keeps the density. Each has a pass over the data in eval mode, which ends where the layer receives its
    input, unless its module runs more than once in a pass on any batch; a pass before them finds that out. Memory holds
    one layer's Hessian, and two matrices more of its size while it is factored.

    Args:
        model: any module; its weights change in place.
        batches: pairs (inputs, anything), read once a layer, and once before.
        density, shape, damping: as `sparsegpt`.
        layers, include: as `coverage`.
        masks: what earlier rounds left.

    Raises:
        ValueError: as `sparsegpt` and `coverage`, or for a layer that is not run on the data.
    """
    density = check_density(density)
    root = unwrap(model)
    covered = coverage(model, layers=layers, include=include)
    own = dict(parameters(model))
    owners = {name: name.rpartition(".")[0] for name in covered.layouts}
    # All layers are looked at before the first one changes.
    for name, layout in covered.layouts.items():
        InputGram(root.get_submodule(owners[name]), layout)
        _pattern(shape, density, layout.inputs, BLOCK)
    given = Given(root, {n: own[n] for n in covered.layouts}, covered.layouts, batches)
    order, again = _order(root, owners, given)
    found: dict[str, Tensor] = {}
    dampings: dict[str, float] = {}
    for name in order:
        layout = covered.layouts[name]
        live = None if masks is None else layout.rows(masks[name])
        done = sparsegpt(
            layout.rows(own[name].detach()),
            _hessian(root, owners[name], layout, given, whole=owners[name] in again),
            density,
            shape=shape,
            damping=damping,
            live=live,
        )
        with torch.no_grad():
            own[name].copy_(layout.unrows(done.weight))
        found[name] = layout.unrows(done.mask).contiguous()
        if done.damping != damping:
            dampings[name] = done.damping
        del done  # not held while data pass again
    result = Masks({name: found[name] for name in covered.layouts})
    record: dict[str, Any] = {
        "method": "sparsegpt",
        "density": density,
        "scope": "layer",
        "shape": shape,
        "damping": damping,
        "more_damping": dampings,
        "kept": result.kept,
        "prunable": result.count,
        "layers": result.densities,
    }
    return Pruning(result, covered, record | given.used | {"mode": "eval"})


def _point(owner: str) -> str:
    return f"input:{owner}" if owner else "input"


def _order(root: nn.Module, owners: dict[str, str], given: Given) -> tuple[list[str], set[str]]:
    """Names in the order in which their modules first run, and the modules that run again in a pass on any batch."""
    ran: list[str] = []
    again: set[str] = set()

    def receive(key: str, _: Tensor) -> None:
        point = key.partition("#")[0]
        owner = "" if point == "input" else point.removeprefix("input:")
        if key == point:
            ran.append(owner)
        else:
            again.add(owner)

    data = given.data()
    with untouched(root), torch.no_grad(), listen(root, [_point(owner) for owner in owners.values()], receive):
        root.eval()
        run(root, next(data)[0])
        missing = [name for name, owner in owners.items() if owner not in ran]
        if missing:
            raise ValueError(f"{missing[0]} is not run as a module on this data; limit layers= to others")
        for inputs, _ in data:
            run(root, inputs)
    return sorted(owners, key=lambda name: ran.index(owners[name])), again


class _Received(BaseException):
    """Ends a forward pass whose rest is not needed; no `except Exception` of a model takes it for a failure."""


def _hessian(root: nn.Module, owner: str, layout: Layout, given: Given, *, whole: bool) -> Tensor:
    """`InputGram.hessian` of what a module receives on all data; passes end there unless they are to be whole."""
    gram = InputGram(root.get_submodule(owner), layout)
    kept: Tensor | None = None

    def receive(_: str, x: Tensor) -> None:
        gram.add(x, kept)
        if not whole:
            raise _Received

    with untouched(root), torch.no_grad(), listen(root, _point(owner), receive):
        root.eval()
        for inputs, _ in given.data():
            kept = tokens(inputs)
            with suppress(_Received):
                run(root, inputs)
    return gram.hessian


def _inverse_factor(hessian: Tensor, dead: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the inverse of the damped Hessian, with 1 for dead inputs, and the damping it took."""
    while True:
        # One name for all steps: each is freed when the next is there.
        factor = hessian.clone()
        factor.diagonal()[dead] = 1
        factor.diagonal().add_(damping * factor.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(factor)
        if not int(failed):
            factor = torch.cholesky_inverse(factor)
            factor, failed = torch.linalg.cholesky_ex(factor, upper=True)
            if not int(failed) and finite(factor):
                return factor, damping
        if damping > 1e3:
            raise ValueError("the Hessian of this layer cannot be inverted: its inputs are too large or too alike")
        damping = max(10 * damping, 1e-6)


def _pattern(shape: str, density: float, columns: int, block: int) -> tuple[int, int] | None:
    if shape == "weight":
        return None
    match = _PATTERN.fullmatch(shape)
    if match is None:
        raise ValueError(f"SparseGPT knows shape 'weight' and N:M, not {shape!r}")
    n, m = int(match[1]), int(match[2])
    if not 0 < n <= m or abs(density - n / m) > 1e-9:
        raise ValueError(f"shape {shape} keeps N/M = {n}/{m} with 0 < N <= M; density must be that, not {density}")
    if columns % m or block % m:
        raise ValueError(f"{columns} inputs in blocks of {block} do not divide into groups of {m}")
    return n, m
