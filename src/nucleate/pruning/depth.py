"""Whole layers: how little changes without one, and where a network may end because its classes have collapsed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.geometry.depth import effective_depth
from nucleate.probes.pooling import Pool, pooled
from nucleate.probes.tap import evaluating, first_tensor, listen, named, unwrap
from nucleate.pruning.coverage import matching
from nucleate.pruning.criteria.given import Batches, Given, Loss, run, size
from nucleate.pruning.criteria.gradients import cross_entropy, loss_of


class Bypass(nn.Module):
    """What stands where a layer was: passes its first argument on."""

    def __init__(self, *, alone: bool = True) -> None:
        super().__init__()
        self.alone = alone
        """Whether the layer returned its tensor alone; else a tuple that begins with it."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        """The first argument."""
        return x if self.alone else (x,)


def removable(model: nn.Module, batches: Batches) -> list[str]:
    """Names of the layers that can be passed by: members of a `Sequential` or `ModuleList` that hold weight
    matrices and whose output has the shape of their input; of nested ones the outermost.

    A block with a projection in its shortcut changes shapes and is not among them.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    >>> removable(net, [(torch.zeros(1, 3), None)])
    ['1']
    """
    modules = named(model)
    members = [
        name
        for name, module in modules.items()
        if isinstance(unwrap(model).get_submodule(name.rpartition(".")[0]), nn.Sequential | nn.ModuleList)
        and any(p.ndim >= 2 for p in module.parameters())
    ]
    shapes = _shapes(model, batches, members)
    fitting = [name for name in members if name in shapes and shapes[name][0] == shapes[name][1]]
    return [name for name in fitting if not any(name.startswith(other + ".") for other in fitting)]


def influence(model: nn.Module, batches: Batches, layers: Sequence[str]) -> dict[str, float]:
    """1 - E[cos(x_in, x_out)] of each layer over examples and positions: little means that it changes little.

    Vectors are tokens of (N, T, d), channels at each place of (N, C, ...), points of (N, d). Eval mode; pairs with a
    zero vector have no angle and are left out (Men et al. 2024, block influence).

    Raises:
        ValueError: for a layer that changes shapes, or has no vector that is not zero.
    """
    inputs: dict[str, Tensor] = {}
    sums, counts = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0)

    def receive(key: str, h: Tensor) -> None:
        if key.startswith("input:"):
            inputs[key.removeprefix("input:")] = h.detach().clone()
            return
        a, b = _vectors(inputs.pop(key)), _vectors(h.detach())
        if a.shape != b.shape:
            raise ValueError(f"{key} takes {tuple(a.shape)} and gives {tuple(b.shape)}: it cannot be passed by")
        lengths = a.norm(dim=1) * b.norm(dim=1)
        there = lengths > 0
        sums[key] += float((1 - (a * b).sum(1)[there] / lengths[there]).sum())
        counts[key] += int(there.sum())

    known = _known(model, layers)
    points = [p for name in known for p in (f"input:{name}", name)]
    with evaluating(model), torch.no_grad(), listen(model, points, receive):
        for x in _inputs(batches):
            run(unwrap(model), x)
    empty = [name for name in known if not counts[name]]
    if empty:
        raise ValueError(f"{empty[0]} receives or gives nothing but zeros on this data: no angle is defined")
    return {name: sums[name] / counts[name] for name in known}


def loss_delta(model: nn.Module, batches: Batches, layers: Sequence[str], loss: Loss | None = None) -> dict[str, float]:
    """Mean loss without a layer, less the loss with it; negative where the network is better off. Eval mode.

    One pass over the data a layer, and one for the whole network.
    """
    known = _known(model, layers)
    held = list(batches)
    whole = mean_loss(model, held, loss)
    out = {}
    for name in known:
        with passing_by(model, [name]):
            out[name] = mean_loss(model, held, loss) - whole
    return out


def mean_loss(model: nn.Module, batches: Batches, loss: Loss | None = None) -> float:
    """Mean loss over all examples, in eval mode and float64 sums."""
    root = unwrap(model)
    given = Given(root, dict(root.named_parameters()), {}, batches, loss or cross_entropy)
    total, count = 0.0, 0
    with evaluating(model), torch.no_grad():
        for inputs, targets in given.data():
            total += float(loss_of(given, inputs, targets)) * size(inputs)
            count += size(inputs)
    return total / count


@contextmanager
def passing_by(model: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """The model without some layers, inside: each gives back its first argument.

    Raises:
        ValueError: when it runs, for a layer whose output has another shape than its input.
    """

    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        x = first_tensor((args, kwargs), type(module).__name__)
        y = first_tensor(out, type(module).__name__)
        if x.shape != y.shape:
            raise ValueError(
                f"{type(module).__name__} takes {tuple(x.shape)} and gives {tuple(y.shape)}: it cannot be passed by"
            )
        return (x, *out[1:]) if isinstance(out, tuple) else x

    handles = [
        unwrap(model).get_submodule(name).register_forward_hook(hook, with_kwargs=True)
        for name in _known(model, layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without(model: nn.Module, layers: Sequence[str], batches: Batches) -> nn.Module:
    """A copy of the model in which some layers are gone, a `Bypass` in their place.

    Args:
        batches: one batch is run, to see that shapes agree.

    Raises:
        ValueError: for a name that is not there, or a layer whose output has another shape than its input.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> small = without(net, ["0"], [(torch.zeros(1, 4), None)])
    >>> sum(p.numel() for p in small.parameters())
    10
    """
    known = _known(model, layers)
    shapes = _shapes(model, batches, known)
    for name in known:
        if name not in shapes:
            raise ValueError(f"{name} does not run on this data")
        if shapes[name][0] != shapes[name][1]:
            raise ValueError(f"{name} takes {shapes[name][0]} and gives {shapes[name][1]}: it cannot be passed by")
    out = copy.deepcopy(unwrap(model))
    for name in known:
        home, _, last = name.rpartition(".")
        setattr(out.get_submodule(home), last, Bypass(alone=shapes[name][2]))
    return out


class Cut(nn.Module):
    """A network that ends at a layer and classifies by the nearest class mean there.

    Its logits are h . m_c - |m_c|^2 / 2, of which the largest is the nearest mean. What comes after the layer is never
    run; its modules are replaced by `Bypass`, so that their weights are gone.
    """

    def __init__(self, model: nn.Module, layer: str, means: Tensor, pool: Pool = "auto") -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.pool = pool
        self.register_buffer("weight", means)
        self.register_buffer("bias", -means.square().sum(1) / 2)

    def forward(self, x: Any) -> Tensor:
        """(N, C) logits."""
        h = pooled(_until(self.model, self.layer, x), self.pool)
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        return h @ weight.T.to(h.dtype) + bias.to(h.dtype)


def cut(
    model: nn.Module,
    batches: Batches,
    layers: Sequence[str],
    *,
    eps: float = 0.0,
    pool: Pool = "auto",
) -> Cut:
    """End the network at its effective depth, with a nearest-class-centre head from the data's class means.

    The effective depth is the first of the layers from which on the nearest class mean is wrong on at most a share eps
    of the data, to the last of them (Galanti, Galanti, Ben-Shaul 2022): where classes have collapsed already.

    Args:
        model: a classifier; it is copied.
        batches: pairs (inputs, labels 0..C-1), read twice: training data.
        layers: candidates in depth order.
        eps: error allowed.
        pool: as `tap`.

    Raises:
        ValueError: if no layer is that good; the message gives the errors.
    """
    known = _known(model, layers, ordered=False)
    held = [(x, torch.as_tensor(y)) for x, y in batches]
    if not held:
        raise ValueError("batches= is empty")
    classes = int(max(int(y.max()) for _, y in held)) + 1
    counts = torch.zeros(classes, dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    for x, y in held:
        counts += torch.bincount(y.cpu(), minlength=classes)
        for name, h in _features(model, known, x, pool).items():
            total = sums.setdefault(name, torch.zeros(classes, h.shape[1], dtype=torch.float64))
            total.index_add_(0, y.cpu(), h)
    if int(counts.min()) == 0:
        raise ValueError(f"class {int(counts.argmin())} has no example: its centre is not known")
    means = {name: total / counts[:, None] for name, total in sums.items()}
    wrong = dict.fromkeys(known, 0)
    for x, y in held:
        for name, h in _features(model, known, x, pool).items():
            logits = h @ means[name].T - means[name].square().sum(1) / 2
            wrong[name] += int((logits.argmax(1) != y.cpu()).sum())
    errors = [wrong[name] / int(counts.sum()) for name in known]
    depth = effective_depth(errors, eps=eps).lasting
    if depth is None:
        listed = ", ".join(f"{name} {error:.4f}" for name, error in zip(known, errors, strict=True))
        raise ValueError(f"no layer classifies by nearest class mean with an error of {eps} or less: {listed}")
    name = known[depth]
    first = next(unwrap(model).parameters())
    return Cut(_truncated(model, name, held[0][0]), name, means[name].to(first), pool)


class _Reached(Exception):
    """The layer has run: the rest is not needed."""


def _until(model: nn.Module, layer: str, x: Any) -> Tensor:
    found: list[Tensor] = []

    def receive(_: str, h: Tensor) -> None:
        found.append(h)
        raise _Reached

    with listen(model, layer, receive):
        try:
            run(model, x)
        except _Reached:
            return found[0]
    raise ValueError(f"{layer} does not run on this data")


def _truncated(model: nn.Module, layer: str, x: Any) -> nn.Module:
    """A copy without the weights of all that has not run when the layer is done."""
    ran: set[str] = set()
    root = unwrap(model)
    leaves = [name for name, m in named(model).items() if not list(m.children())]
    with evaluating(root), torch.no_grad(), listen(root, leaves, lambda key, _: ran.add(key.partition("#")[0])):
        _until(root, layer, x)
    out = copy.deepcopy(root)
    for name in leaves:
        if name not in ran and name != layer:
            home, _, last = name.rpartition(".")
            setattr(out.get_submodule(home), last, Bypass())
    return out


def _features(model: nn.Module, layers: Sequence[str], x: Any, pool: Pool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def receive(key: str, h: Tensor) -> None:
        found[key] = pooled(h, pool).double().cpu()

    with evaluating(model), torch.no_grad(), listen(model, list(layers), receive):
        run(unwrap(model), x)
    return {name: found[name] for name in layers}


def _shapes(
    model: nn.Module, batches: Batches, layers: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """Shapes of input and output of each layer on one batch, and whether it gives a tensor alone."""
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool]] = {}
    root = unwrap(model)

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            x, y = first_tensor((args, kwargs), name), first_tensor(out, name)
            found[name] = tuple(x.shape), tuple(y.shape), isinstance(out, Tensor)

        return hook

    handles = [root.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in layers]
    try:
        with evaluating(model), torch.no_grad():
            run(root, next(_inputs(batches)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _inputs(batches: Batches) -> Iterator[Any]:
    empty = True
    for inputs, _ in batches:
        empty = False
        yield inputs
    if empty:
        raise ValueError("batches= is empty; an iterator can be read only once: give a list or a DataLoader")


def _known(model: nn.Module, layers: Sequence[str], *, ordered: bool = True) -> list[str]:
    found = matching(model, list(layers))
    if not found:
        raise ValueError("no layers are named")
    return found if ordered else [name for name in layers if name in found] or found


def _vectors(h: Tensor) -> Tensor:
    """(vectors, d), float64: tokens of sequences, channels at each place of maps, points."""
    h = h.double()
    return h.movedim(1, -1).flatten(0, -2) if h.ndim > 3 else h.reshape(-1, h.shape[-1])
