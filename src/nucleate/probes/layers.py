"""Every layer of a network measured together: one forward pass, and a second where exactness needs the means first."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from nucleate.geometry.conventions import Convention, convention_named
from nucleate.geometry.inputs import check_classifier
from nucleate.probes.measures import effective_depths, layer_records, neighbour_records
from nucleate.probes.outputs import Outputs
from nucleate.probes.passes import Head, LayerState, Split
from nucleate.probes.points import Batches
from nucleate.probes.pooling import Pool
from nucleate.probes.records import Records
from nucleate.probes.resolve import Layer, Names, Trace
from nucleate.probes.tap import evaluating

MEASURES = ("outputs", "collapse", "points", "chi", "overlap", "dimension", "participation", "cka")
"""What `probe` measures, by group.

outputs: accuracy, error, loss, ece, vertex distances and norms of the logits. collapse: NC1 to NC3. points: NC4,
nearest-mean accuracy, boundary distances and effective depth. chi, overlap with the next layer, dimension (two-NN),
participation ratio and cka (to the last layer): on the subsample.
"""

GRAM = 2048
"""Largest dimension whose d x d second moment is kept where the points cannot be read twice (32 MiB in float64)."""

Cache = Literal["memory", "disk"]


@torch.no_grad()
def probe(
    model: nn.Module,
    batches: Any,
    *,
    test_batches: Any = None,
    layers: Names = "auto",
    measures: Collection[str] = MEASURES,
    k: int = 5,
    subsample: int = 2000,
    num_classes: int | None = None,
    classifier: str | None = None,
    pool: Pool | Mapping[str, Pool] = "auto",
    convention: str | Convention = "papyan2020",
    cache: Cache | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Records:
    """Measure every layer of a network on the same points, with bounded memory.

    One forward pass gives the class moments of all layers. Exact NC1, NC4 and nearest means need the class means
    first; each layer takes the cheapest exact way, named in its records' "method": "project" (a second forward pass
    onto the C means), "gram" (the d x d second moment, one pass: where C >= d and "points" are not asked for, or where
    the batches can be read only once) or "cache". Test points are judged by the training means, in one pass.

    Args:
        model: any module; it runs in eval mode without gradients, uncompiled, and is left as it was.
        batches: iterable of (inputs, labels), read twice unless cached, or a pair of tensors.
        test_batches: held-out points, as `batches`.
        layers: "auto", or names and patterns (see `resolve_layers`).
        measures: groups of `MEASURES`.
        k: neighbours of chi and of the overlap.
        subsample: points of each split on which neighbours, dimensions and CKA are taken; a uniform draw.
        num_classes: C; the width of the model's output if none.
        classifier: name of the last linear map; the last `nn.Linear` that runs, if none.
        pool: how maps and sequences become one vector a point (see `pooled`), for all layers or by name.
        convention: of the collapse measures.
        cache: keep all features of a split in "memory" or in a temporary file on "disk", instead of the second pass.
        device: where the points go; where the model's parameters are, if none.
        generator: seeds the subsample; always the same one if none.
        progress: show a bar.

    Returns:
        Records {"layer", "split", "metric", "value", ...} in depth order; layer "" for the whole network. A value that
        is not defined is nan, with a "reason".

    Raises:
        ValueError: for unknown names, labels out of range, NaN, or points that change between the passes.

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> found = probe(net, (x, torch.tensor([0, 0, 1, 1])), measures=["collapse"])
    >>> round(found.value("input", "nc1_quotient"), 4), found.layers
    (0.01, ['input', 'penultimate', 'logits'])
    """
    wanted = _checked(measures)
    name, rule = convention_named(convention)
    if cache not in (None, "memory", "disk"):
        raise ValueError(f"cache must be None, 'memory' or 'disk', not {cache!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    where = torch.device(device) if device is not None else _device(model)
    few = subsample if wanted & {"chi", "overlap", "dimension", "participation", "cka"} else 0
    sources = {"train": Batches(batches, where)}
    if test_batches is not None:
        sources["test"] = Batches(test_batches, where)
    out = Records()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_same_random_state())
        stack.enter_context(evaluating(model))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nucleate-"))) if cache == "disk" else None
        trace = Trace(model, sources["train"].example(), classifier)
        found = trace.auto(pool) if isinstance(layers, str) and layers == "auto" else trace.select(layers, pool)
        classes = num_classes or _classes(trace)
        head = _head(trace, classes, found)
        judges: dict[str, torch.Tensor] = {}
        for split, source in sources.items():
            # A global mean that is weighted by points is not known before all of them were seen.
            one_pass = bool(judges) and rule.mu_g == "class"
            states = [
                LayerState(
                    layer,
                    classes,
                    head if layer.name == "penultimate" or layer.tap == f"input:{trace.classifier}" else None,
                    rule,
                    method=_method(layer, classes, wanted, None if one_pass else cache, again=source.again or one_pass),
                    means=judges.get(layer.tap),
                    device=where,
                )
                for layer in found
            ]
            outputs = Outputs(classes) if "outputs" in wanted else None
            run = Split(trace.model, source, states, outputs, few, seed, pool, folder)
            stack.callback(run.close)
            twice = not one_pass and any(state.method == "project" for state in states)
            total = None if source.total is None else source.total * (1 + twice)
            with tqdm(total=total, desc=f"probe {split}", disable=not progress, unit="batch") as bar:

                def tick(bar: Any = bar, more: int = source.total or 0) -> None:
                    # Layers that float32 cannot certify are read once more.
                    if bar.total is not None and bar.n >= bar.total:
                        bar.total += more
                    bar.update()

                run.collect(tick, project=one_pass)
                run.project(tick)
            if outputs is not None:
                out += _output_records(outputs, split)
            for state in states:
                out += layer_records(state, split, name, rule, wanted)
            if few:
                out += neighbour_records(states, run.labels, split, k, wanted)
            if "points" in wanted:
                out += effective_depths(out, split)
            run.close()
            judges = judges or {state.layer.tap: state.means_of_points for state in states}
    return out


def _checked(measures: Collection[str]) -> set[str]:
    wanted = {measures} if isinstance(measures, str) else set(measures)
    unknown = sorted(wanted - set(MEASURES))
    if unknown or not wanted:
        raise ValueError(f"unknown measures {unknown}; there are {', '.join(MEASURES)}")
    return wanted


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _classes(trace: Trace) -> int:
    logits = trace.events["logits"].value
    if logits.ndim != 2:
        raise ValueError(f"the model gives {tuple(logits.shape)}, which does not tell the classes; give num_classes=")
    return logits.shape[1]


def _head(trace: Trace, classes: int, layers: list[Layer]) -> Head:
    """The classifier, if it fits the classes and what it receives; else why not."""
    found = trace.head()
    if found is None:
        return Head(None, None, "no nn.Linear runs in this model; name the classifier with classifier=")
    weight, bias = found
    receives = next((layer for layer in layers if layer.tap == f"input:{trace.classifier}"), None)
    try:
        check_classifier(weight, bias, classes, weight.shape[1] if receives is None else receives.dim)
    except ValueError as error:
        return Head(None, None, f"classifier {trace.classifier!r} does not fit: {error}")
    return Head(weight, bias, "")


def _method(layer: Layer, classes: int, wanted: set[str], cache: Cache | None, *, again: bool) -> str:
    """The cheapest exact way: 2 N d C for a projection, 2 N d^2 for a second moment, which gives no NC4."""
    if not wanted & {"collapse", "points"}:
        return "moments"
    if cache is not None:
        return f"cache ({cache})"
    if again and ("points" in wanted or classes < layer.dim):
        return "project"
    return "gram" if layer.dim <= GRAM else "moments"


def _output_records(outputs: Outputs, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for metric, value in outputs.values().items():
        row = {"layer": "", "split": split, "metric": metric, "value": value, "n": outputs.points}
        rows.append({**row, "reason": outputs.reason} if math.isnan(value) else row)
    return rows


@contextlib.contextmanager
def _same_random_state() -> Any:
    """Data loaders draw from the global generator whenever they start; it is put back."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
