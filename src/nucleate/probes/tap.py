"""Activations of named modules, by hooks that leave nothing behind."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nucleate.probes.pooling import Pool, pool_for, pooled

Receive = Callable[[str, Tensor], None]
"""Called in the forward pass with a layer's name and its tensor, which an in-place operation may yet overwrite."""

INPUT = "input:"


class Seen(dict[str, Tensor]):
    """Activations by name, in the order in which the modules ran in the latest forward pass."""

    def __missing__(self, name: str) -> Tensor:
        ran = f"; there are {', '.join(self)}" if self else "; run the model inside the block first"
        raise KeyError(f"nothing was seen of {name!r}{ran}")


@contextmanager
def tap(
    model: nn.Module,
    names: str | re.Pattern[str] | Sequence[str | re.Pattern[str]],
    *,
    pool: Pool | Mapping[str, Pool] | None = None,
    detach: bool = True,
) -> Iterator[Seen]:
    """Record what named modules give, or receive, while the model runs; the hooks are gone afterwards.

    Every forward pass starts anew. A module that runs several times in one pass is recorded as `name`, `name#2`, ...;
    of tuples, lists and dicts the first floating-point tensor is taken. Activations are copies, so in-place operations
    after the layer do not rewrite them. Wrapped models (`torch.compile`, `DataParallel`) are looked into: names are
    those of the module inside, and it runs uncompiled, on one device, meanwhile.

    Args:
        model: any module.
        names: module names, exact, as glob patterns (`*` crosses dots) or compiled regular expressions; "input:NAME"
            is what NAME receives, "NAME#2" its second run; "input" and "logits" what the model receives and returns.
        pool: name of a pooling to one vector a point (see `pooled`), or a mapping from layers to such names; the
            output as it is if none.
        detach: cut the activations from the autograd graph.

    Raises:
        ValueError: if a name matches nothing, with the nearest names.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    >>> with tap(net, ["0", "input:2"]) as seen:
    ...     _ = net(torch.ones(5, 3))
    >>> {name: tuple(h.shape) for name, h in seen.items()}
    {'0': (5, 4), 'input:2': (5, 4)}
    """
    seen = Seen()

    def receive(name: str, h: Tensor) -> None:
        h = h.detach() if detach else h
        out = h if pool is None else pooled(h, pool_for(name, pool))
        # What pooling has averaged is a copy already.
        shared = out.untyped_storage().data_ptr() == h.untyped_storage().data_ptr()
        seen[name] = out.clone() if shared else out

    with listen(model, names, receive, started=seen.clear):
        yield seen


@contextmanager
def listen(
    model: nn.Module,
    names: str | re.Pattern[str] | Sequence[str | re.Pattern[str]],
    receive: Receive,
    *,
    started: Callable[[], None] | None = None,
    lenient: bool = False,
) -> Iterator[None]:
    """Call `receive(name, tensor)` as each named module runs: `tap` without keeping anything.

    The tensor is the model's own, valid during the call. `started` is called as each forward pass begins. Modules that
    pass on no tensor are an error, unless `lenient`.

    Raises:
        ValueError: as `tap`.
    """
    points = find(model, names)
    calls: dict[str, int] = {}

    def begin(*_: Any) -> None:
        calls.clear()
        if started is not None:
            started()

    def pass_on(point: Point, value: Any) -> None:
        run = calls[point.key] = calls.get(point.key, 0) + 1
        if (point.run is None or point.run == run) and not (lenient and next(tensors(value), None) is None):
            receive(point.key if run == 1 or point.run else f"{point.key}#{run}", first_tensor(value, point.key))

    with ExitStack() as stack:
        stack.enter_context(_uncompiled())
        for wrapper in model.modules():
            if isinstance(wrapper, nn.DataParallel) and len(wrapper.device_ids) > 1:
                stack.callback(setattr, wrapper, "device_ids", wrapper.device_ids)
                wrapper.device_ids = wrapper.device_ids[:1]
        stack.callback(unwrap(model).register_forward_pre_hook(begin, prepend=True).remove)
        for point in points:
            if point.receives:

                def before(_: nn.Module, args: Any, kwargs: Any, point: Point = point) -> None:
                    pass_on(point, (args, kwargs))

                handle = point.module.register_forward_pre_hook(before, with_kwargs=True)
            else:

                def after(_: nn.Module, args: Any, out: Any, point: Point = point) -> None:
                    pass_on(point, out)

                handle = point.module.register_forward_hook(after)
            stack.callback(handle.remove)
        yield


@dataclass(frozen=True)
class Point:
    """A place to listen at: a module's output, or what it receives; `run` only that run of a pass."""

    key: str
    name: str
    module: nn.Module
    receives: bool
    run: int | None = None


def find(model: nn.Module, names: str | re.Pattern[str] | Sequence[str | re.Pattern[str]]) -> list[Point]:
    """The places that names and patterns select, each once, in the order given.

    Raises:
        ValueError: if one of them selects nothing, with the nearest names.

    >>> [p.key for p in find(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["*", "input:1"])]
    ['0', '1', 'input:1']
    """
    wanted = [names] if isinstance(names, str | re.Pattern) else list(names)
    root = unwrap(model)
    modules = named(model)
    known = {name: Point(name, name, module, False) for name, module in modules.items()}
    known |= {INPUT + name: Point(INPUT + name, name, module, True) for name, module in modules.items()}
    known = {"input": Point("input", "", root, True), "logits": Point("logits", "", root, False)} | known
    found: dict[str, Point] = {}
    for name in wanted:
        for point in _match(name, known, list(modules)):
            if isinstance(point.module, torch.jit.ScriptModule) and point.module is not root:
                raise ValueError(f"{point.name!r} is scripted: its hooks never run; give the model before scripting")
            found.setdefault(point.key, point)
    every_run = {(p.name, p.receives) for p in found.values() if p.run is None}
    return [p for p in found.values() if p.run is None or (p.name, p.receives) not in every_run]


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside `torch.compile`, `DataParallel`, `DistributedDataParallel` and `AveragedModel`.

    >>> inner = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(inner)) is inner
    True
    """
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def named(model: nn.Module) -> dict[str, nn.Module]:
    """All submodules by name, without the names that wrappers add; a shared module under each of its names.

    >>> list(named(nn.DataParallel(nn.Sequential(nn.ReLU()))))
    ['0']
    """
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, prefix: str, above: tuple[nn.Module, ...]) -> None:
        for name, child in module.named_children():
            child = unwrap(child)
            if child not in above:
                found[prefix + name] = child
                walk(child, f"{prefix}{name}.", (*above, child))

    root = unwrap(model)
    walk(root, "", (root,))
    return found


def first_tensor(value: Any, name: str) -> Tensor:
    """The first floating-point tensor in a tensor, tuple, list or dict, however nested; else the first tensor.

    Raises:
        ValueError: if there is none, naming the layer.

    >>> first_tensor((torch.tensor(1), {"h": torch.tensor(2.0)}), "lstm").item()
    2.0
    """
    found = list(tensors(value))
    if not found:
        raise ValueError(f"layer {name!r} gives {type(value).__name__} without any tensor; tap another one")
    return next((t for t in found if t.is_floating_point()), found[0])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        inside: nn.Module = module.module
        return inside
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _match(name: str | re.Pattern[str], known: Mapping[str, Point], modules: list[str]) -> list[Point]:
    if isinstance(name, re.Pattern):
        # A pattern selects inputs only when it says so; "." alone would select everything twice.
        receives = name.pattern.startswith(INPUT)
        found = [known[key] for key in _keys(modules, receives) if name.fullmatch(key)]
    else:
        for plain in (name, re.sub(r"\b(_orig_mod|module)\.", "", name)):
            if plain in known:
                return [known[plain]]
            base, _, run = plain.rpartition("#")
            if base in known and run.isdecimal() and int(run) > 0:
                key = base if int(run) == 1 else f"{base}#{run}"
                return [dataclasses.replace(known[base], key=key, run=int(run))]
        glob = re.compile(_glob(name))
        found = [known[key] for key in _keys(modules, name.startswith(INPUT)) if glob.fullmatch(key)]
    if not found:
        text = name.pattern if isinstance(name, re.Pattern) else name
        near = difflib.get_close_matches(text, known, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(modules[:20])}"
        raise ValueError(f"no module matches {text!r}; {hint}")
    return found


def _keys(modules: list[str], receives: bool) -> list[str]:
    return [INPUT + name for name in modules] if receives else modules


def _glob(pattern: str) -> str:
    """A glob as a regular expression; "*" and "?" only, for brackets occur in module names."""
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a tensor, tuple, list or dict, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled code was traced without the hooks and would pass them by."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
