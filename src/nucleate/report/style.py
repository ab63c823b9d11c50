"""How files of figures look: colours, markers, axes. matplotlib's global settings are left as they were."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7f00")
"""Okabe and Ito 2008, the yellow darkened for a white ground."""
MARKERS = ("o", "s", "D", "^", "P", "X", "v", "*", "p", "h")
DASHES = ("-", "--", ":", "-.", (0, (6, 2)))
INK, SOFT, LINE = "#1c2430", "#56606e", "#d9dee5"
FORMATS = ("png", "pdf", "svg")
DPI = 160

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebef",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "nucleate",
}


@contextmanager
def styled() -> Iterator[None]:
    """Within it, new figures look like the report's; afterwards matplotlib's settings are what they were."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes; that is no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that no global list of figures knows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; the same figure gives the same bytes.

    Raises:
        ValueError: for a format that is not png, pdf or svg.
    """
    kind = path.suffix.lstrip(".").lower()
    check_formats([kind])
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata=dated)
    return path


def check_formats(formats: Iterable[str]) -> None:
    """Refuse a format that cannot be written.

    Raises:
        ValueError: for a format that is not png, pdf or svg.
    """
    for kind in formats:
        if kind not in FORMATS:
            raise ValueError(f"figures can be written as {', '.join(FORMATS)}, not {kind!r}")


def plain(text: object, length: int = 22) -> str:
    """Untrusted text as matplotlib shows it: one line, cut in the middle, its dollars not read as mathematics.

    >>> plain("costs $5, or $6")
    'costs \\\\$5, or \\\\$6'
    """
    line = " ".join(str(text).split())
    if len(line) > length:
        keep = length - 1
        line = f"{line[: (keep + 1) // 2]}…{line[len(line) - keep // 2 :]}"
    return line.replace("$", r"\$")


def distinct(names: Sequence[str], length: int) -> list[str]:
    """Names cut for an axis; those that would look alike get their position in front.

    >>> distinct(["block.0.attention", "block.1.attention", "head"], 12)
    ['1: bloc…ion', '2: bloc…ion', 'head']
    """
    cut = [plain(name, length) for name in names]
    return [
        f"{i + 1}: {plain(name, length - 4)}" if cut.count(c) > 1 else c
        for i, (name, c) in enumerate(zip(names, cut, strict=True))
    ]


def colour(index: int) -> str:
    """Colour of a class or a curve."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Marker of a class; colours and markers together tell 70 classes apart."""
    return MARKERS[index % len(MARKERS)]


class Epochs:
    """The axis of epochs: logarithmic where they span a factor of 20, with epoch 0 half a step before the first."""

    def __init__(self, epochs: Iterable[int]) -> None:
        every = sorted(set(epochs))
        self.positive = [e for e in every if e > 0]
        self.has_start = 0 in every
        self.log = bool(self.positive) and self.positive[-1] / self.positive[0] >= 20
        self.start = self.positive[0] / 2.2 if self.log else 0.0

    def at(self, epochs: Sequence[int]) -> list[float]:
        """Positions of epochs."""
        return [float(e) if e > 0 or not self.log else self.start for e in epochs]

    def apply(self, axes: Any) -> None:
        """Scale, ticks and label of the x axis."""
        axes.set_xlabel("epoch")
        if not self.log:
            return
        last = self.positive[-1]
        ticks = [m * 10**k for k in range(int(math.log10(last)) + 1) for m in (1, 3)]
        ticks = [t for t in ticks if self.positive[0] <= t <= last]
        places = ([self.start] if self.has_start else []) + [float(t) for t in ticks]
        names = (["start"] if self.has_start else []) + [str(t) for t in ticks]
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(names)
        axes.set_xlim((self.start if self.has_start else self.positive[0]) / 1.25, last * 1.25)


class Values:
    """The axis of values, as on the page: from zero, unless all values lie far from it.

    Logarithmic if asked for and possible, where the values span enough to carry ticks; exact zeros lie on a line of
    their own below.
    """

    def __init__(self, values: Iterable[float], log: bool) -> None:
        finite = [v for v in values if math.isfinite(v)]
        positive = [v for v in finite if v > 0]
        narrow = bool(finite) and min(finite) > 0 and max(finite) < 3 * min(finite)
        self.log = log and bool(positive) and min(finite) >= 0 and not narrow
        self.floor = math.nan
        far = bool(finite) and min(finite) > 0.6 * max(finite) > 0
        self.low, self.high = min(finite if far else [0.0, *finite]), max([0.0, *finite])
        if self.log:
            self.low, self.high = min(positive), max(positive)
            if 0.0 in finite:
                self.floor = 10 ** (math.floor(math.log10(self.low) - 0.15) - 0.5)

    def at(self, values: Iterable[float]) -> list[float]:
        """Positions of values."""
        return [self.floor if self.log and v == 0 else v for v in values]

    def apply(self, axes: Any) -> None:
        """Scale and ticks of the y axis."""
        if not self.log:
            room = 0.07 * ((self.high - self.low) or 1.0)
            axes.set_ylim(self.low - room if self.low else 0.0, self.high + room)
            return
        axes.set_yscale("log")
        span = math.log10(self.high / self.low)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if span < 1.4 else (1,)
        ticks = [m * 10.0**k for k in powers for m in steps if span <= 6 or k % 2 == 0]
        if math.isfinite(self.floor):
            ticks.append(self.floor)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: "0" if v == self.floor else power(v)))
        pad = 10 ** (0.08 * max(span, 0.5))
        axes.set_ylim(self.floor / 1.6 if math.isfinite(self.floor) else self.low / pad, self.high * pad)


def power(value: float) -> str:
    """A tick of a log axis.

    >>> power(0.01), power(5.0), power(1e-5)
    ('0.01', '5', '$10^{-5}$')
    """
    exponent = round(math.log10(value), 6)
    if exponent == int(exponent) and abs(exponent) > 3:
        return f"$10^{{{int(exponent)}}}$"
    return f"{value:.6g}"
