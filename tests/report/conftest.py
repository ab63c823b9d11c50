"""A synthetic run folder with hand-made numbers: six epochs, five layers, ten classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleate.runs import Run, write_run
from nucleate.spec import CollapseSpec, DataSpec, TrainSpec

EPOCHS = (0, 1, 3, 10, 30, 100)
ZERO = 10
LAYERS = ("input", "hidden1", "hidden2", "penultimate", "logits")
SPREAD = {0: 3.0, 1: 1.2, 3: 0.6, 10: 0.25, 30: 0.08, 100: 0.02}
SCALE = {0: 0.15, 1: 1.5, 3: 3.0, 10: 5.0, 30: 8.0, 100: 11.0}


def helmert(classes: int) -> np.ndarray[Any, Any]:
    """Unit vertices of the simplex ETF, (C, C-1)."""
    rows = np.zeros((classes - 1, classes))
    for k in range(1, classes):
        rows[k - 1, :k], rows[k - 1, k] = 1.0, -k
        rows[k - 1] /= math.sqrt(k * (k + 1))
    return math.sqrt(classes / (classes - 1)) * rows.T


def rows_of(spec: CollapseSpec, epoch: int, shift: float) -> list[dict[str, Any]]:
    """Records of one epoch; `shift` moves every value a little, as another seed would."""
    base = {"study": "collapse", "seed": spec.seed, "step": epoch * 20, "epoch": epoch}
    s, f = SPREAD[epoch] * (1 + shift), 1 - math.exp(-epoch / 4)
    late = max(0.0, math.log10(max(epoch, 1)) - 1) / 1.0
    rows: list[dict[str, Any]] = []

    def add(layer: str, split: str, metric: str, value: float, **more: Any) -> None:
        row = {"layer": layer, "split": split, "metric": metric, "value": value} | more
        rows.append(base | row)

    for split, gap in (("train", 0.0), ("test", 0.03)):
        error = max(0.0, 0.9 * (1 - f) - (0.08 if gap == 0 else 0.0)) + gap * f * (1 + shift) - 0.01 * gap * late
        add("", split, "error", error)
        add("", split, "accuracy", 1 - error)
        add("", split, "loss", 2.3 * (1 - f) + 0.004 / (1 + epoch) + gap * 3)
        add("penultimate", split, "nc4", max(0.0, 0.5 * (1 - f) - 0.04) + gap * 0.3 * f, n=400)
    for metric, value in {
        "vertex_distance_mean": 0.95 * s / 3,
        "vertex_distance_max": min(1.3, s * 1.5),
        "logit_norm": 0.4 + SCALE[epoch] * 2.2,
        "logit_ratio": s * s * 0.4,
        "near_zero_share": 0.08 + 0.5 * f + 0.1 * late,
        "gini": 0.3 + 0.3 * f,
        "pattern_share": 0.8 + 0.08 * f,
    }.items():
        add("", "" if metric in ("near_zero_share", "gini") else "train", metric, value * (1 + 0.1 * shift))
    for metric, value in {
        "fgsm_accuracy": 0.1 + 0.55 * f + 0.05 * late,
        "pgd_accuracy": 0.1 + 0.45 * f + 0.06 * late,
        "corruption_accuracy": 0.1 + 0.7 * f,
        "min_perturbation": 0.01 + 0.03 * f + 0.01 * late,
        "ece": 0.02 + 0.05 * f * (1 - f) + 0.01 * late,
    }.items():
        add("", "test", metric, value * (1 - 0.1 * shift), n=500)
    for depth, layer in enumerate(LAYERS):
        share = depth / (len(LAYERS) - 1)
        for split in ("train", "test"):
            local = s * (2.2 - 1.2 * share * f) * (1.0 if split == "train" else 1.3)
            for metric, value in {
                "nc1": local**2 * 0.3,
                "nc1_quotient": local**2,
                "nc1_cdnv": local**2 * 0.5,
                "nc2_equinorm": 0.3 * local**0.5 * 0.3,
                "nc2_equiangle": 0.2 * local**0.5 * 0.3,
                "nc2_etf": 0.4 * local**0.7 * 0.3,
            }.items():
                add(layer, split, metric, value, convention="papyan2020")
            hit = 0.35 + (0.6 * share * f)
            add(layer, split, "chi", hit, k=5, chance=0.1, low=hit - 0.03, high=min(1.0, hit + 0.03), n=1000)
            add(layer, split, "ncc_accuracy", min(1.0, 0.4 + 0.6 * f * share**0.5) - (0.02 if split == "test" else 0))
        add(layer, "train", "intrinsic_dimension", 12 - 8 * share * f)
        add(layer, "train", "participation_ratio", 20 - 11 * share * f)
        if depth + 1 < len(LAYERS):
            add(layer, "train", "overlap_next", 0.4 + 0.3 * f)
    for metric, value in {
        "nc2_equinorm_weights": 0.1 * s**0.5,
        "nc2_equiangle_weights": 0.07 * s**0.5,
        "nc3": 2 * s / 3 * 0.9,
        "nc3_gram": 1.2 * s / 3,
        "nc3_cosine": 0.9 * s / 3,
        "boundary_spread": 0.8 * s / 3,
    }.items():
        add("penultimate", "train", metric, value)
    return rows


def arrays_of(epoch: int, classes: int, rng: np.random.Generator, histograms: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of one epoch: 20 points of each class."""
    labels = np.repeat(np.arange(classes), 20)
    vertices = helmert(classes)
    spread, scale = SPREAD[epoch], SCALE[epoch]
    noise = rng.standard_normal((len(labels), classes - 1)) / math.sqrt(classes - 1)
    points = vertices[labels] + spread * noise
    logits = scale * points @ vertices.T
    exp = np.exp(logits - logits.max(1, keepdims=True))
    drift = spread * rng.standard_normal((classes, classes - 1)) * 0.1
    arrays = {
        "labels": labels.astype(np.int64),
        "probs": exp / exp.sum(1, keepdims=True),
        "logits": logits,
        "etf_points": points,
        "etf_means": np.stack([points[labels == c].mean(0) for c in range(classes)]),
        "etf_weights": 3 * (vertices + drift),
        "etf_vertices": vertices,
        "boundary": 1.0 + 0.4 * spread * rng.standard_normal(len(labels)),
    }
    basis = rng.standard_normal((classes - 1, 8))
    for depth, layer in enumerate(LAYERS):
        local = spread * (1.6 - 0.3 * depth)
        cloud = (vertices[labels] + local * noise) @ basis
        cloud -= cloud.mean(0)
        arrays[f"pca:{layer}"] = cloud @ np.linalg.svd(cloud, full_matrices=False)[2].T
    arrays = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in arrays.items()}
    if histograms:
        for name, width in (("hidden1.weight", 0.1), ("classifier.weight", 0.2)):
            weights = rng.laplace(0, width, 4000) if epoch else rng.uniform(-2 * width, 2 * width, 4000)
            counts, edges = np.histogram(weights, bins=41, range=(-8 * width, 8 * width))
            arrays[f"hist:{name}"], arrays[f"edges:{name}"] = counts, edges
    return arrays


def build_run(
    root: Path,
    *,
    seed: int = 0,
    classes: int = 10,
    loss: str = "cross-entropy",
    class_names: list[str] | None = None,
    layer_names: tuple[str, ...] = LAYERS,
    epochs: tuple[int, ...] = EPOCHS,
    finished: bool = True,
    tensors: bool = True,
    drop: tuple[str, ...] = (),
) -> Run:
    """Write a run folder and open it; `drop` leaves metrics out, `layer_names` renames the layers."""
    train: Any = {"loss": loss}
    spec = CollapseSpec(recipe="digits-mlp", seed=seed, data=DataSpec(name="digits"), train=TrainSpec(**train))
    rng = np.random.default_rng(seed + 1)
    new = dict(zip(LAYERS, layer_names, strict=True))
    env = {
        "class_names": class_names or [f"digit {c}" for c in range(classes)],
        "layers": list(layer_names),
        "parameters": 150_000,
        "torch": "2.9.0",
        "data": {"name": "digits", "digest": "0" * 12, "train": 1438},
        "zero_error_epoch": ZERO if max(epochs) >= ZERO else -1,
    }
    shift = 0.2 * math.sin(3.0 * seed) + (0.5 if loss == "mse" else 0.0)
    with write_run(root, spec, env=env) as writer:
        for epoch in epochs:
            rows = [r for r in rows_of(spec, epoch, shift) if r["metric"] not in drop]
            writer.append([r | {"layer": new.get(r["layer"], r["layer"])} for r in rows])
            if tensors:
                arrays = arrays_of(epoch, classes, rng, epoch in (0, ZERO, 100))
                renamed = {
                    f"pca:{new[k[4:]]}" if k.startswith("pca:") else k: v
                    for k, v in arrays.items()
                    if k.split(":")[0] not in drop
                }
                writer.save_tensors(f"epoch-{epoch:06d}", renamed)
        if finished:
            writer.finish()
    return Run(writer.path)


VERDICTS: list[dict[str, Any]] = [
    {
        "id": "nc1",
        "tier": "quick",
        "sentence": "Within-class variability collapses.",
        "source": "Papyan, Han, Donoho 2020",
        "criterion": "NC1 falls by 5x or more from zero error to the end and ends at most 0.02",
        "verdict": "holds",
        "clauses": [
            {"name": "fall", "effect": 24.0, "low": 18.0, "high": 31.0, "bound": 5.0, "direction": ">=", "unit": "x"},
            {
                "name": "end value",
                "effect": 0.004,
                "low": 0.003,
                "high": 0.006,
                "bound": 0.02,
                "direction": "<",
                "unit": "",
            },
        ],
        "control": "untrained network: 1.9 [1.7, 2.2]",
        "seeds": 10,
        "seconds": 12.5,
        "figure": "nc",
    },
    {
        "id": "collapse-robust",
        "tier": "quick",
        "sentence": "Training past zero error makes the network more robust.",
        "source": "Papyan, Han, Donoho 2020",
        "criterion": "PGD accuracy at the end above that at zero error",
        "verdict": "inconclusive",
        "clauses": [
            {
                "name": "PGD accuracy, end minus zero error",
                "effect": 0.8,
                "low": -0.6,
                "high": 2.2,
                "bound": 0.0,
                "direction": ">",
                "unit": "points",
            }
        ],
        "control": None,
        "seeds": 10,
        "seconds": 8.0,
        "figure": "accuracy",
    },
    {
        "id": "collapse-generalises",
        "tier": "quick",
        "sentence": "Training past zero error helps the test accuracy.",
        "source": "Papyan, Han, Donoho 2020",
        "criterion": "test accuracy at the end at least that at zero error",
        "verdict": "fails",
        "clauses": [
            {
                "name": "test accuracy, end minus zero error",
                "effect": -1.4,
                "low": -2.0,
                "high": -0.7,
                "bound": 0.0,
                "direction": ">=",
                "unit": "points",
            }
        ],
        "control": "none needed",
        "seeds": 10,
        "seconds": 8.0,
        "figure": "accuracy",
    },
]


@pytest.fixture
def build() -> Callable[..., Run]:
    """`build_run`, for the tests."""
    return build_run


@pytest.fixture
def verdicts() -> list[dict[str, Any]]:
    """One claim that holds, one that is undecided, one that fails."""
    return [dict(v) for v in VERDICTS]
