"""Accuracy on inputs that were spoilt in known ways, each at five severities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from nucleate.probes.robustness import correct

SEVERITIES = (1, 2, 3, 4, 5)

Corruption = Callable[[Tensor, int, Generator], Tensor]
"""Inputs (N, ...) scaled to [0, 1], a severity from 1 to 5, a generator -> corrupted inputs, clipped later."""


def _gaussian(x: Tensor, severity: int, generator: Generator) -> Tensor:
    return x + 0.08 * severity * _normal(x, generator)


def _shot(x: Tensor, severity: int, generator: Generator) -> Tensor:
    photons = (60, 30, 15, 8, 4)[severity - 1]
    return torch.poisson((x * photons).cpu(), generator=generator).to(x) / photons


def _salt_and_pepper(x: Tensor, severity: int, generator: Generator) -> Tensor:
    hit = _uniform(x, generator) < 0.05 * severity
    return torch.where(hit, (_uniform(x, generator) < 0.5).to(x), x)


def _contrast(x: Tensor, severity: int, generator: Generator) -> Tensor:
    mean = x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
    return mean + (x - mean) * (0.75, 0.5, 0.35, 0.2, 0.1)[severity - 1]


def _blur(x: Tensor, severity: int, generator: Generator) -> Tensor:
    channels, height, width = x.shape[1:]
    for axis, size in ((2, height), (3, width)):
        sigma = 0.02 * severity * size
        reach = math.ceil(3 * sigma)
        offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = torch.softmax(-offsets.square() / (2 * sigma**2), 0)
        kernel = kernel.reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)).repeat(channels, 1, 1, 1)
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        x = F.conv2d(F.pad(x, padding, mode="replicate"), kernel, groups=channels)
    return x


def _pixelate(x: Tensor, severity: int, generator: Generator) -> Tensor:
    share = (0.75, 0.6, 0.5, 0.4, 0.3)[severity - 1]
    size = (max(1, round(share * x.shape[2])), max(1, round(share * x.shape[3])))
    return F.interpolate(F.adaptive_avg_pool2d(x, size), size=x.shape[2:], mode="nearest-exact")


def _rotation(x: Tensor, severity: int, generator: Generator) -> Tensor:
    angle = math.radians(8 * severity) * _sign(x, generator)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    height, width = x.shape[2:]
    rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
    return _moved(x, torch.stack(rows, 1).reshape(-1, 2, 3))


def _shift(x: Tensor, severity: int, generator: Generator) -> Tensor:
    direction = 2 * math.pi * _uniform(x[:, 0, 0, 0], generator)
    far = 0.04 * severity * 2
    one, zero = torch.ones_like(direction), torch.zeros_like(direction)
    rows = [one, zero, far * direction.cos(), zero, one, far * direction.sin()]
    return _moved(x, torch.stack(rows, 1).reshape(-1, 2, 3))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian": _gaussian,
    "shot": _shot,
    "salt-and-pepper": _salt_and_pepper,
    "contrast": _contrast,
    "blur": _blur,
    "pixelate": _pixelate,
    "rotation": _rotation,
    "shift": _shift,
}
"""Corruptions by name: four that change single values, and four that need an image."""

VALUEWISE = ("gaussian", "shot", "salt-and-pepper", "contrast")
"""Those that serve inputs of any shape."""


@torch.no_grad()
def corrupt(
    inputs: Tensor,
    kind: str,
    severity: int,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: Generator | None = None,
) -> Tensor:
    """Inputs with one corruption, clipped to the bounds. Strengths are ours, in shares of the range or of the side.

    gaussian: noise of std 0.08 s of the range, s the severity. shot: Poisson counts of 60, 30, 15, 8, 4 photons at
    full brightness. salt-and-pepper: a share 0.05 s of values at either bound. contrast: 0.75, 0.5, 0.35, 0.2, 0.1 of
    the distance from each input's own mean. blur: Gaussian, std 0.02 s of the side. pixelate: means over 0.75, 0.6,
    0.5, 0.4, 0.3 of the pixels along a side. rotation: 8 s degrees either way. shift: 0.04 s of the side in a random
    direction. What comes in from outside the image is its edge repeated.

    Args:
        inputs: (N, ...); images (N, channels, height, width) for the last four.
        kind: a name of `CORRUPTIONS`.
        severity: 1 to 5.
        bounds: smallest and largest value that an input can take.
        generator: of the noise; one seeded with 0 if none.

    Raises:
        ValueError: for an unknown kind or severity, and for inputs that are no images where one is needed.

    >>> corrupt(torch.tensor([[0.0, 1.0]]), "contrast", 2).tolist()
    [[0.25, 0.75]]

    (After Hendrycks, Dietterich 2019, whose corruptions these resemble.)
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"no corruption is named {kind!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"a severity is one of 1 to 5, not {severity}")
    if kind not in VALUEWISE and inputs.ndim != 4:
        raise ValueError(
            f"{kind} needs images (N, channels, height, width), not {tuple(inputs.shape)}; "
            f"for other inputs there are {', '.join(VALUEWISE)}"
        )
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds must rise, not {bounds}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x = ((inputs - low) / (high - low)).clamp(0, 1)
    return low + (high - low) * CORRUPTIONS[kind](x, severity, generator).clamp(0, 1)


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracy by corruption and severity."""

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    table: Tensor
    """(kinds, severities) accuracies, float64."""

    @property
    def mean(self) -> float:
        """Mean over kinds and severities."""
        return float(self.table.mean())


@torch.no_grad()
def corruption_accuracy(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> CorruptionAccuracy:
    """Accuracy of a model, in eval mode, on corrupted inputs: every kind at every severity.

    The noise of a cell depends on the seed, the kind and the severity alone, so two models see the same inputs.

    Args:
        model: gives logits (N, C).
        inputs, labels: (N, ...), (N,).
        kinds: names of `CORRUPTIONS`; all that suit the inputs' shape if none.
        severities: of 1 to 5.
        bounds: smallest and largest value that an input can take.
        seed: of the noise.

    Raises:
        ValueError: without points, kinds or severities, and as `corrupt`.

    >>> net = nn.Linear(1, 2)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]])); _ = net.bias.data.copy_(torch.tensor([-0.5, 0.5]))
    >>> corruption_accuracy(net, torch.tensor([[0.9]]), torch.tensor([0]), kinds=["contrast"]).mean
    1.0
    """
    if kinds is None:
        kinds = tuple(CORRUPTIONS) if inputs.ndim == 4 else VALUEWISE
    if not len(inputs) or not kinds or not severities:
        raise ValueError("corruption accuracy needs at least one point, one kind and one severity")
    rows = []
    for kind in kinds:
        # One forward pass a kind: all severities are one batch.
        spoilt = [
            corrupt(inputs, kind, severity, bounds=bounds, generator=Generator().manual_seed(seed + severity))
            for severity in severities
        ]
        right = correct(model, torch.cat(spoilt), labels.repeat(len(severities)))
        rows.append(right.reshape(len(severities), -1).double().mean(1).cpu())
    return CorruptionAccuracy(tuple(kinds), tuple(severities), torch.stack(rows))


def _normal(x: Tensor, generator: Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _uniform(x: Tensor, generator: Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _sign(x: Tensor, generator: Generator) -> Tensor:
    return torch.where(torch.rand(len(x), generator=generator, dtype=x.dtype) < 0.5, -1.0, 1.0).to(x)


def _moved(x: Tensor, affine: Tensor) -> Tensor:
    """Images sampled at affine (N, 2, 3) places, in units of half a side, bilinear, the edge repeated."""
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
