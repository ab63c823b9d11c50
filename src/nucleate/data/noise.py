"""Wrong labels, rare classes and small subsets: exact counts, decided by a generator."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from nucleate.data.dataset import DataError

KINDS = ("symmetric", "asymmetric", "random")


def flip_labels(labels: Tensor, share: float, *, num_classes: int, generator: Generator, kind: str) -> Tensor:
    """Copy of labels (N,) in which floor(share N + 1/2) points, drawn without replacement, get a new label.

    `symmetric`: one of the other C - 1 classes, uniformly. `asymmetric`: the next class, (y + 1) mod C.
    `random`: one of all C classes, so that about 1 / C of the points drawn keep theirs (Zhang et al. 2017).

    Raises:
        DataError: for a share outside [0, 1], an unknown kind or, where another class is asked for, fewer than two.

    >>> flipped = flip_labels(torch.zeros(10).long(), 0.3, num_classes=2, generator=Generator(), kind="symmetric")
    >>> int(flipped.sum())
    3
    """
    if not 0.0 <= share <= 1.0:
        raise DataError(f"data.label_noise is a share of the training labels, in [0, 1], not {share}")
    if kind not in KINDS:
        raise DataError(f"data.noise_kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if kind != "random" and num_classes < 2 and share > 0:
        raise DataError(f"{kind} label noise needs at least two classes, not {num_classes}")
    drawn = torch.randperm(len(labels), generator=generator)[: int(share * len(labels) + 0.5)]
    flipped = labels.clone()
    if kind == "random":
        flipped[drawn] = torch.randint(0, num_classes, (len(drawn),), generator=generator)
    elif len(drawn):
        shift = torch.ones(len(drawn), dtype=torch.int64)
        if kind == "symmetric":
            shift = torch.randint(1, num_classes, (len(drawn),), generator=generator)
        flipped[drawn] = (labels[drawn] + shift) % num_classes
    return flipped


def class_counts(available: list[int], size: int | None, imbalance: float, *, what: str = "train") -> list[int]:
    r"""How many points of each class to keep, n_c proportional to imbalance^{-c / (C - 1)}.

    With a size the counts add up to it (largest remainders, ties to the lower class); without one they are the largest
    that the available points allow. Balanced (imbalance 1) and without a size, everything is kept.

    Raises:
        DataError: for an imbalance below 1, or a size that is not available or leaves a class empty.

    >>> class_counts([100, 100, 100], 70, 4.0)
    [40, 20, 10]
    """
    if not 1.0 <= imbalance < float("inf"):
        raise DataError(f"data.imbalance is the largest class count over the smallest, at least 1, not {imbalance}")
    if size is None and imbalance == 1.0:
        return list(available)
    classes = len(available)
    weights = [imbalance ** (-c / (classes - 1)) if classes > 1 else 1.0 for c in range(classes)]
    if size is None:
        largest = min(n / w for n, w in zip(available, weights, strict=True))
        counts = [int(largest * w + 1e-9) for w in weights]
        size = sum(counts)
    else:
        shares = [size * w / sum(weights) for w in weights]
        counts = [int(s + 1e-9) for s in shares]
        rest = sorted(range(classes), key=lambda c: (round(counts[c] - shares[c], 9), c))
        for c in rest[: size - sum(counts)]:
            counts[c] += 1
    if min(counts) < 1:
        raise DataError(
            f"{what}ing on {size} points of {classes} classes at imbalance {imbalance:g} leaves class "
            f"{counts.index(min(counts))} empty: ask for more points or less imbalance"
        )
    for c, (wanted, there) in enumerate(zip(counts, available, strict=True)):
        if wanted > there:
            raise DataError(
                f"data.{what}_size {size} at imbalance {imbalance:g} asks for {wanted} points of class {c}, "
                f"but there are {there}; ask for fewer"
            )
    return counts


def subset(labels: Tensor, counts: list[int], *, generator: Generator) -> Tensor:
    """Ascending indices of counts[c] points of each class c, drawn so that smaller counts give a part of larger ones.

    >>> subset(torch.tensor([0, 0, 1, 1]), [2, 0], generator=Generator()).tolist()
    [0, 1]
    """
    kept = []
    for c, count in enumerate(counts):
        members = torch.nonzero(labels == c).flatten()
        kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(kept).sort().values


def stratified_split(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Ascending indices (kept, held out) of a fixed split that holds out about `share` of every class.

    The split is the same for every seed: a held-out point never becomes a training point.

    >>> kept, held_out = stratified_split(torch.arange(2).repeat(10), 0.2)
    >>> len(kept), len(held_out)
    (16, 4)
    """
    generator = Generator().manual_seed(0)
    counts = [int(n * share + 0.5) for n in torch.bincount(labels).tolist()]
    held_out = subset(labels, counts, generator=generator)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[held_out] = False
    return torch.nonzero(mask).flatten(), held_out
