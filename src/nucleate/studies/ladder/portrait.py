"""What a ticket is: where its weights lie, what training did to them, which of them lie on paths, how it collapses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nucleate.geometry.collapse import collapse
from nucleate.probes.tap import tap
from nucleate.pruning.masks import Masks, ones
from nucleate.training.chain import layers_of

NC = ("nc1", "nc2_equinorm", "nc2_equiangle", "nc3", "nc4")
"""Measures of collapse that are followed along the ladder."""

HISTOGRAM_REACH = 4.0
HISTOGRAM_BINS = 32
"""Weights are counted in bins of a quarter of their layer's initial deviation, the outermost ones open."""

Value = tuple[str, str, str, float]
"""Metric, layer, split, value."""


def portrait(
    masks: Masks, initial: Mapping[str, Tensor], trained: Mapping[str, Tensor], model: nn.Module
) -> list[Value]:
    """Of one ticket: density and sign agreement by layer, distance travelled, share of weights on live paths.

    The sign agreement is the share of kept weights whose sign after training is that of the start; the distance is
    |w - w0| / |w0| over kept weights.
    """
    values: list[Value] = []
    moved = start = torch.zeros((), dtype=torch.float64)
    agreed = 0
    for name, mask in masks.items():
        keep = mask.bool()
        w0, w = initial[name][keep].double(), trained[name][keep].double()
        same = int((w0.sign() == w.sign()).sum())
        agreed += same
        moved, start = moved + (w - w0).square().sum(), start + w0.square().sum()
        values.append(("layer_density", name, "", masks.densities[name]))
        if len(w):
            values.append(("sign_agreement", name, "", same / len(w)))
    values.append(("sign_agreement", "", "", agreed / max(1, masks.kept)))
    values.append(("distance", "", "", float((moved / start).sqrt()) if float(start) else 0.0))
    live = on_paths(masks, model)
    if live is not None:
        values.append(("live_share", "", "", live / max(1, masks.kept)))
    return values


def weight_histograms(
    masks: Masks, initial: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> list[tuple[str, float, float]]:
    """How the kept weights are distributed at the start and at the end: (moment, middle of the bin, density).

    All layers together, each weight in units of its layer's initial standard deviation about zero (over all weights,
    kept or not); a density integrates to 1.

    >>> w = {"w": torch.tensor([1.0, -1.0, 1.0, 1.0])}
    >>> rows = weight_histograms(Masks({"w": torch.tensor([1, 0, 0, 0])}), w, {"w": 2 * w["w"]})
    >>> [row for row in rows if row[2]]
    [('start', 1.125, 4.0), ('end', 2.125, 4.0)]
    """
    rows = []
    width = 2 * HISTOGRAM_REACH / HISTOGRAM_BINS
    for moment, weights in (("start", initial), ("end", trained)):
        counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.float64)
        for name, mask in masks.items():
            scale = float(initial[name].double().square().mean().sqrt()) or 1.0
            units = weights[name][mask.bool()].double() / scale
            bins = ((units + HISTOGRAM_REACH) / width).floor().clamp(0, HISTOGRAM_BINS - 1).long()
            counts += torch.bincount(bins, minlength=HISTOGRAM_BINS)
        density = counts / (max(1, masks.kept) * width)
        middles = [(i + 0.5) * width - HISTOGRAM_REACH for i in range(HISTOGRAM_BINS)]
        rows += [(moment, middle, value) for middle, value in zip(middles, density.tolist(), strict=True)]
    return rows


def on_paths(masks: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Kept weights that lie on a path of kept weights from an input to an output; None unless a plain chain.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> on_paths({"0.weight": torch.tensor([[1, 1], [1, 0]]), "2.weight": torch.tensor([[1, 0]])}, net)
    3
    """
    try:
        held = [masks[f"{layer.linear}.weight"].bool() for layer in layers_of(model)]
    except (ValueError, KeyError):
        return None
    forward = [torch.ones(held[0].shape[1], dtype=torch.bool)]
    for mask in held:
        forward.append((mask & forward[-1]).any(1))
    backward = [torch.ones(len(held[-1]), dtype=torch.bool)]
    for mask in reversed(held):
        backward.append((mask & backward[-1].unsqueeze(1)).any(0))
    pairs = zip(held, forward, reversed(backward[:-1]), strict=False)
    return sum(ones((m & before & after.unsqueeze(1)).to(torch.uint8)) for m, before, after in pairs)


def input_counts(masks: Masks, shape: tuple[int, ...]) -> Tensor | None:
    """Weights that each input position keeps in a first linear map, summed over channels: (height, width)."""
    first = next(iter(masks.values()))
    if first.ndim != 2 or len(shape) != 3 or first.shape[1] != shape[0] * shape[1] * shape[2]:
        return None
    return first.sum(0, dtype=torch.int64).view(shape).sum(0)


def overlaps(masks: list[Masks]) -> list[float]:
    """For each seed, the mean Jaccard overlap of its mask with those of the other seeds."""
    count = len(masks)
    table = [[masks[i].compare(masks[j])["all"] if i != j else 0.0 for j in range(count)] for i in range(count)]
    return [sum(row) / (count - 1) for row in table]


def chance_overlap(masks: Masks) -> float:
    """Expected overlap with a mask of the same layer densities drawn at random: sum k^2/n over sum (2k - k^2/n).

    >>> chance_overlap(Masks({"w": torch.tensor([1, 1, 0, 0])}))  # one of the three in either is in both
    0.3333333333333333
    """
    both = sum(ones(m) ** 2 / m.numel() for m in masks.values())
    return both / (2 * masks.kept - both)


@torch.no_grad()
def collapse_values(model: nn.Module, inputs: Tensor, labels: Tensor, num_classes: int) -> list[Value]:
    """NC measures of what the last linear map receives, on training points; none if there is no such map."""
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1][1].out_features != num_classes:
        return []
    name, classifier = linear[-1]
    model.eval()
    with tap(model, [f"input:{name}"]) as seen:
        model(inputs)
        features = seen[f"input:{name}"]
    nc = collapse(features, labels, num_classes=num_classes, weight=classifier.weight, bias=classifier.bias)
    return [(metric, "penultimate", "train", float(getattr(nc, metric))) for metric in NC]
