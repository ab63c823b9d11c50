"""The parts that the specs of studies share: data, model, training, measuring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which points and labels a study sees."""

    name: str = "digits"
    """A source of `nucleate data list`, a path (IDX folder, parquet, .npz) or `package.module:function`. Images are
    shares of 255, not normalised further."""
    train_size: int | None = None
    """Balanced subset of this many training points; all of them if none."""
    test_size: int | None = None
    """Balanced subset of this many held-out points; all of them if none."""
    label_noise: float = 0.0
    """Share of training labels that are replaced."""
    noise_kind: Literal["symmetric", "asymmetric", "random"] = "symmetric"
    """symmetric: by another class; asymmetric: by the next class; random: drawn from all classes."""
    imbalance: float = 1.0
    """Largest class count over the smallest; the counts fall geometrically with the class index."""
    context: int = 64
    """Bytes of a sequence, where the source is a text."""
    seed: int = 0
    """Seed of the subset, the noise and of synthetic points (not of the training)."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network is trained."""

    name: str = "mlp"
    """mlp, lenet, convnet, conv, resnet, transformer, `package.module:function` (of input_shape, num_classes), or the
    folder of a model of `transformers`."""
    width: int = 256
    """Units of a hidden layer (mlp, transformer, lenet's first) or channels of the first stage (all convolutional)."""
    depth: int = 3
    """Hidden layers (mlp), convolutions (convnet, conv), residual blocks in each stage (resnet), blocks
    (transformer); lenet has two hidden layers."""
    batchnorm: bool = False
    """Batch normalisation after every hidden linear map or convolution."""
    init: Literal["he", "glorot"] = "he"
    """Law of the initial weights: variance 2 / fan-in (1 / fan-in for the last map), or 2 / (fan-in + fan-out)."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How it is trained."""

    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    """Cross-entropy, or squared loss against one-hot targets."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum 0.9, or Adam with coupled weight decay."""
    lr: float = 0.1
    """Largest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty on every parameter."""
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    """steps: divided by ten at one and at two thirds of the epochs (Papyan, Han, Donoho 2020)."""
    epochs: int = 100
    """Passes over the training set in all."""
    batch_size: int = 128
    """Points in a step; the last, partial batch is used too."""
    sparse: bool = False
    """Where masks leave little, train what they leave and nothing else: as masked dense training, and faster. On the
    CPU, below the density at which this machine is found to gain by it; networks that are trained stacked stay so."""
    error_floor: float = 0.0
    """Training error that counts as zero; above 0 where labels conflict."""
    precision: Literal["auto", "fp32"] = "auto"
    """auto: the shortcuts that this machine's self-test found exact or harmless; fp32: none."""
    threads: int | None = None
    """Threads of the run; as many as cores if none. Part of what makes a resumed run equal."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """What is measured, and how often."""

    points: int = 15
    """Log-spaced epochs at which the network is measured, beside the start, zero error and the end."""
    full_every: int = 0
    """At the start, at zero error, at the end and at every so many of these epochs (0: at no other) everything is
    measured on all points; at the rest only accuracy, loss, collapse and weights."""
    light_size: int = 4000
    """Points of each split, evenly over the classes, of the measures at those others."""
    layers: tuple[str, ...] = ()
    """Names or glob patterns of modules; every layer with an output of its own if empty."""
    convention: str = "papyan2020"
    """Named convention of the collapse measures."""
    k: int = 5
    """Neighbours of chi."""
    subsample: int = 2000
    """Points on which neighbour measures are taken."""
    picture: int = 400
    """Training points whose outputs and projections are kept for the report."""
    robustness: int = 300
    """Held-out points on which attacks and corruptions are tried; 0 for none."""
    epsilon: float = 0.1
    """Largest change of an input (L-infinity, in units of the input's full range) of FGSM and PGD."""
