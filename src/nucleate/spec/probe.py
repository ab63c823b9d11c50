"""What the probe study runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """Every layer of a finished network, or of its checkpoints along training, measured on one data set."""

    study: Literal["probe"] = "probe"
    recipe: str = "model"
    """Names the run; the model's own name unless given."""
    model: str = ""
    """`package.module:function` that makes the network; called with input_shape and num_classes if it asks for them."""
    weights: str = ""
    """A .safetensors, .pt or .pth file, or a folder of them (a sweep over training); none are loaded if empty."""
    data: str = "digits"
    """A source of `nucleate data list`, a path (IDX folder, parquet, .npz) or `package.module:function`."""
    train_size: int | None = None
    """Balanced subset of this many training points; all of them if none."""
    test_size: int | None = None
    """Balanced subset of this many held-out points; all of them if none."""
    layers: tuple[str, ...] = ()
    """Names or glob patterns of modules, "input:NAME" for what one receives; what the network hands on if empty."""
    classifier: str | None = None
    """Name of the last linear map; the last one that runs if none."""
    pool: str = "auto"
    """auto, flatten, gap, mean, cls, last, token:I, position:I,J: how maps and sequences become one vector a point."""
    k: int = 5
    """Neighbours of chi."""
    subsample: int = 2000
    """Points of each split on which neighbours, dimensions and CKA are taken."""
    convention: str = "papyan2020"
    """Named convention of the collapse measures."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Keep all features instead of passing over the points twice."""
    batch_size: int = 128
    """Points that run together."""
    picture: int = 400
    """Training points whose outputs and projections are kept for the report."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
