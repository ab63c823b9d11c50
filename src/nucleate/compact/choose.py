"""Dense, sparse, block-sparse or shrunk: chosen layer by layer, and for the whole network, by measuring."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from nucleate.compact import native
from nucleate.compact.choice import Choice, Layer, Report
from nucleate.compact.fold import folded, masked
from nucleate.compact.layers import is_hooked
from nucleate.compact.outputs import differences
from nucleate.compact.plan import Plan
from nucleate.compact.shrink import shrink
from nucleate.compact.sparse import SparseConv2d, SparseLinear
from nucleate.machine.matmul import fast_matmul, medium_keeps_float32
from nucleate.probes.tap import unwrap

SHORT_SECONDS = 0.01
"""A call below this is timed after an untimed one; for a longer one the caches matter little."""
LEAST_SECONDS = 0.05
"""Candidates are run for so long each, on average, and at least five times."""

MOST_PLANS = 8
"""Input shapes for which an accelerated model keeps plans."""


class Accelerated(nn.Module):
    """A model for inference in the form that was fastest; `report` says why.

    Weights are fixed: a plan has copied them. For input that requires a gradient, in another dtype, on another device,
    of no points and under `torch.compile` its layers run one by one, which any torch code can follow.
    """

    report: Report | None = None

    def __init__(self, dense: nn.Module, choice: Choice) -> None:
        super().__init__()
        self.choice = choice
        self.dense = dense
        self._plans: dict[tuple[tuple[int, ...], torch.dtype, torch.device], Plan | None] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        if self.choice.form == "plan" and x.numel() and not x.requires_grad and not torch.compiler.is_compiling():
            plan = self._plan(x)
            if plan is not None:
                return plan(x)
        if self.choice.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with fast_matmul() if self.choice.fast_matmul else nullcontext():
            return cast(Tensor, self.dense(x))

    def _plan(self, x: Tensor) -> Plan | None:
        key = (tuple(x.shape), x.dtype, x.device)
        if key not in self._plans:
            if len(self._plans) == MOST_PLANS:
                self._plans.pop(next(iter(self._plans)))
            try:
                self._plans[key] = Plan(cast(Any, self.dense), x, self.choice.layers)
            except ValueError:
                self._plans[key] = None
        return self._plans[key]

    def __getstate__(self) -> dict[str, Any]:
        # A plan holds addresses; it is made anew where it is needed.
        return {**self.__dict__, "_plans": {}}


@torch.no_grad()
def accelerate(
    model: nn.Module, example: Tensor, *, masks: Mapping[str, Tensor] | None = None, choice: Choice | None = None
) -> Accelerated:
    """The model in the form that is fastest for inputs like `example`, on the threads that torch uses now.

    Layer by layer, dense, single-weight and block-sparse forms are measured; then whole networks, in turns: as it was;
    dense with batch normalisation folded, by the fast float32 route and in channels_last; sparse layers in torch's
    graph; all layers in one native call. The same for the shrunk network, where units or channels are dead. Of those
    that give the same outputs the fastest is returned, in eval mode, with `.report`; if nothing is faster, that is a
    copy of the model as it was, masks applied.

    Args:
        model: any module that makes one tensor of one; used in eval mode, never changed.
        example: an input of the batch size to be fast at.
        masks: 0 where a weight is pruned, by parameter name; without them whatever is 0 counts as pruned.
        choice: build this form (`report.choice` of an earlier call) without measuring.

    Raises:
        ValueError: for a mask that fits no parameter, a model that gives anything but a tensor, or a choice that does
            not fit the model or gives other outputs.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> fast = accelerate(net, torch.ones(8, 64), choice=Choice(form="dense"))
    >>> bool(torch.allclose(fast(torch.ones(8, 64)), net(torch.ones(8, 64)), atol=1e-5))
    True
    """
    whole = masked(model, masks)
    pruned, expected = unwrap(whole), _output(whole, example)
    if not isinstance(expected, Tensor):
        raise ValueError(
            f"{type(model).__name__} gives a {type(expected).__name__}, not one tensor: accelerate the part that does"
        )
    if choice is not None:
        base = whole if choice.form == "none" else pruned
        fast = _build(shrink(base, None, example) if choice.shrunk else base, choice, example)
        if not _same(_output(fast, example), expected):
            raise ValueError(f"{choice} changes the outputs of {type(model).__name__}: choose without it")
        return fast
    bases = {"": pruned}
    try:
        small = shrink(pruned, None, example)
    except ValueError:
        small = pruned
    if _count(small) < _count(pruned):
        bases["shrunk, "] = small
    layers = {prefix: _measure_layers(base, example) for prefix, base in bases.items()}
    candidates = {"as it was": _build(whole, Choice(form="none"), example)}
    for prefix, base in bases.items():
        chosen_forms = {la.name: la.chosen for la in layers[prefix]}
        for name, wanted in _choices(base, chosen_forms, example).items():
            try:
                candidate = _build(base, replace(wanted, shrunk=bool(prefix)), example)
            except ValueError:
                continue
            if _same(_output(candidate, example), expected):
                candidates[prefix + name] = candidate
    calls = {name: partial(candidate, example.clone()) for name, candidate in candidates.items()}
    seconds = measure({**calls, "as it was": partial(whole, example.clone())})
    best = min(seconds, key=seconds.__getitem__)
    fast = candidates[best]
    fast.report = Report(
        shape=tuple(example.shape),
        threads=torch.get_num_threads(),
        layers=layers["shrunk, " if fast.choice.shrunk else ""],
        seconds=seconds,
        choice=fast.choice,
        chosen=best,
        difference=max((apart for apart, _ in differences(_output(fast, example), expected)), default=0.0),
    )
    return fast


def _output(model: nn.Module, example: Tensor) -> Any:
    """What a model gives, which may overwrite its input."""
    return model(example.clone())


def _same(got: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are the same but for rounding: half the digits of their dtype."""
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 if expected.is_floating_point() else 0.0
    return all(apart <= tolerance * (size or 1.0) for apart, size in differences(got, expected))


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _choices(model: nn.Module, chosen: dict[str, str], example: Tensor) -> dict[str, Choice]:
    """Whole networks worth measuring."""
    images = example.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in model.modules())
    out = {"dense, folded": Choice(form="dense")}
    if images:
        out["dense, folded, channels_last"] = Choice(form="dense", channels_last=True)
    if medium_keeps_float32():
        out["dense, folded, fast products"] = Choice(form="dense", fast_matmul=True, channels_last=images)
    if not native.available() or not chosen:
        return out
    if any(form != "dense" for form in chosen.values()):
        out["sparse layers"] = Choice(form="sparse", layers=chosen)
    # In a plan every layer is native: one that is best dense is held as whole blocks.
    inside = {name: "block" if form == "dense" else form for name, form in chosen.items()}
    out["one native call"] = Choice(form="plan", layers=inside)
    return out


def _build(pruned: nn.Module, choice: Choice, example: Tensor) -> Accelerated:
    if choice.form == "none":
        return Accelerated(pruned, choice).eval()
    try:
        dense: nn.Module = folded(pruned)
    except ValueError:
        if choice.form == "plan":
            raise
        dense = copy.deepcopy(pruned)
    for name in choice.layers:
        if not isinstance(dict(dense.named_modules()).get(name), nn.Linear | nn.Conv2d):
            raise ValueError(f"the choice names {name!r}, which is no linear map or convolution of this model")
    if choice.form == "plan":
        Plan(cast(Any, dense), example, choice.layers)
    elif choice.form == "sparse":
        for name, form in choice.layers.items():
            if form != "dense":
                parent, _, last = name.rpartition(".")
                setattr(dense.get_submodule(parent), last, _sparse(dense.get_submodule(name), form, trainable=True))
    if choice.channels_last:
        dense = dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Accelerated(dense.requires_grad_(False), choice).eval()


def _sparse(layer: nn.Module, form: str, *, trainable: bool) -> nn.Module:
    """A layer in a sparse form; `trainable` if gradients of its input may be asked for."""
    block = 4 if form == "block" else 1
    if is_hooked(layer):
        raise ValueError(f"{layer} has forward hooks, which a sparse layer leaves out")
    if isinstance(layer, nn.Linear):
        return SparseLinear(layer, block=block, trainable=trainable)
    assert isinstance(layer, nn.Conv2d)
    return SparseConv2d(layer, block=block, trainable=trainable)


def _measure_layers(model: nn.Module, example: Tensor) -> list[Layer]:
    """Each linear map and convolution that runs once, on inputs of the size that it gets."""
    inputs: dict[str, list[tuple[int, ...]]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: inputs.setdefault(name, []).append(
                tuple((*args, *kwargs.values())[0].shape)
            ),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d)
    ]
    _output(model, example)
    for hook in hooks:
        hook.remove()
    out = []
    for name, shapes in inputs.items():
        layer: Any = model.get_submodule(name)
        if len(shapes) != 1 or not layer.weight.numel() or not example.is_floating_point():
            continue
        x = torch.randn(shapes[0], dtype=example.dtype, device=example.device)
        forms: dict[str, nn.Module] = {"dense": layer}
        if native.available() and x.dtype == torch.float32 and x.device.type == "cpu":
            for form in ("single", "block"):
                try:
                    forms[form] = _sparse(layer, form, trainable=False)
                except ValueError:
                    continue
        # The batch comes innermost from a sparse layer before, and stays so: that is what the sparse forms get.
        turned = x.permute(*range(1, x.dim()), 0).contiguous().permute(-1, *range(x.dim() - 1))
        calls: dict[str, Callable[[], object]] = {
            form: partial(module, x if form == "dense" else turned) for form, module in forms.items()
        }
        if isinstance(layer, nn.Conv2d) and x.device.type == "cpu":
            last = copy.deepcopy(layer).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            image = x.contiguous(memory_format=torch.channels_last)
            calls["channels_last"] = partial(last, image)
        seconds = measure(calls)
        if "channels_last" in seconds:
            seconds["dense"] = min(seconds["dense"], seconds.pop("channels_last"))
        weight = cast(Tensor, layer.weight)
        positions = layer(x).numel() // weight.shape[0]
        out.append(
            Layer(
                name=name,
                weights=weight.numel(),
                left=int((weight != 0).sum()),
                macs=positions * weight.numel(),
                seconds=seconds,
                chosen=min(seconds, key=seconds.__getitem__),
            )
        )
    return out


def measure(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each call, in turns, so that a slow moment of the machine touches all.

    Before a short call is timed it is made once untimed: in use it follows itself, not the one whose turn was before,
    which has filled the caches with its own weights. On one thread it is the thread's CPU time, which other programs
    disturb least; else time on the wall.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in calls}
    rounds = 0
    while rounds < 5 or sum(map(sum, taken.values())) < LEAST_SECONDS * len(taken):
        rounds += 1
        for name, call in calls.items():
            if not taken[name] or taken[name][-1] < SHORT_SECONDS:
                call()
            start = clock()
            call()
            taken[name].append(clock() - start)
    return {name: statistics.median(t) for name, t in taken.items()}
