"""What was chosen for a network, and what was measured on the way."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

FORMS = ("plan", "sparse", "dense", "none")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen: enough to build the same model again without measuring."""

    form: str
    """plan: all layers in one native call; sparse: sparse layers in torch's graph; dense; or none: as it was."""
    shrunk: bool = False
    """Dead units and channels removed first."""
    channels_last: bool = False
    fast_matmul: bool = False
    layers: dict[str, str] = field(default_factory=dict)
    """single, block or dense, by layer."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"there is no form {self.form!r}; there are {', '.join(FORMS)}")
        for name in ("shrunk", "channels_last", "fast_matmul"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is true or false, not {getattr(self, name)!r}")
        if not isinstance(self.layers, dict) or not set(self.layers.values()) <= {"single", "block", "dense"}:
            raise ValueError(f"layers gives single, block or dense for each name, not {self.layers!r}")

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Choice:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is not such a choice.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no choice of accelerate: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, measured on its own."""

    name: str
    weights: int
    left: int
    macs: int
    """Multiply-adds of one forward pass when dense."""
    seconds: dict[str, float]
    """By form: dense, single, block."""
    chosen: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, and what came of it."""

    shape: tuple[int, ...]
    threads: int
    layers: list[Layer]
    seconds: dict[str, float]
    """Of the whole network, by candidate, measured in turns; "as it was" among them."""
    choice: Choice
    chosen: str
    """Which candidate."""
    difference: float
    """Largest absolute difference of the outputs on the example, chosen form against the network as it was."""

    @property
    def speedup(self) -> float:
        """Time as it was over the time of the chosen form."""
        return self.seconds["as it was"] / self.seconds[self.chosen]

    def __str__(self) -> str:
        lines = [f"input {self.shape}, {self.threads} threads; milliseconds, median"]
        lines += [
            f"  {la.name:24} {la.left / max(1, la.weights):6.1%} of {la.weights:>9,} weights, "
            + f"{la.macs / 1e6:9.1f} M multiply-adds  "
            + "  ".join(f"{form} {1e3 * s:.3f}" for form, s in la.seconds.items())
            + f"  -> {la.chosen}"
            for la in self.layers
        ]
        lines += [f"  {name:40} {1e3 * s:9.3f}" for name, s in self.seconds.items()]
        if self.chosen == "as it was":
            lines.append("nothing is faster: the network is as it was")
        else:
            lines.append(f"chosen: {self.chosen}, {self.speedup:.2f}x; outputs differ by at most {self.difference:.1e}")
        return "\n".join(lines)
