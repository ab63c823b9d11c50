"""What the page carries: plain values for JSON, arrays as 16-bit integers in base64."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nucleate.report.catalog import DEPTH_MEASURES, LABELS, PANELS
from nucleate.report.charts import Section, along_epochs, charted_sections
from nucleate.report.charts.chart import Chart, Curve, grid, labels, marks, section_curves
from nucleate.report.gather import BAND_SEEDS, View, band, groups, seeds_told
from nucleate.report.scenes import Array, Projection, flat, simplex_scores

MAX_POINTS = 600
MAX_CLASSES = 32
MAX_PICTURES = 12
"""Runs whose points a page carries; a sweep's other runs are in its curves and tables."""


def payload(found: Sequence[View], verdicts: Sequence[Mapping[str, Any]], projection: Projection) -> dict[str, Any]:
    """Everything that page.js draws."""
    trained = along_epochs(found)
    return {
        "projection": projection,
        "labels": LABELS,
        "panels": [asdict(p) for p in PANELS],
        "groups": [_group(label, members) for label, members in groups(trained).items()],
        "runs": [_run(v, projection) for v in pictured(trained)],
        "charts": {s.id: _charts(found, s) for s in charted_sections(found)},
        "verdicts": [_plain(dict(v)) for v in verdicts],
    }


def pictured(found: Sequence[View]) -> list[View]:
    """The runs whose points are drawn: first seeds of all specs first, then second seeds, and so on."""
    rank = {id(v): i for members in groups(found).values() for i, v in enumerate(members)}
    chosen = sorted(found, key=lambda v: rank[id(v)])[:MAX_PICTURES]
    return [v for v in found if v in chosen]


def embed(values: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or begin a comment.

    >>> embed({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(values, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def pack(values: Array) -> dict[str, Any]:
    """An array as integers 0..65534 between its extremes, little endian in base64; 65535 is nan.

    >>> pack(np.array([[0.0, 1.0]]))["shape"]
    [1, 2]
    """
    x = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(x)
    low, high = (float(x[finite].min()), float(x[finite].max())) if finite.any() else (0.0, 0.0)
    step = (high - low) / 65534 or 1.0
    whole = np.where(finite, np.rint((np.where(finite, x, low) - low) / step), 65535).astype("<u2")
    return {"low": low, "step": step, "shape": list(x.shape), "data": base64.b64encode(whole.tobytes()).decode()}


def rounded(values: Sequence[float]) -> list[float | None]:
    """Four significant digits; what is not finite becomes null."""
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]


def _group(label: str, members: Sequence[View]) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    why: dict[str, str] = {}
    for panel in PANELS:
        for line in panel.lines:
            layers = [panel.layer] if not panel.layer else list(dict.fromkeys(n for v in members for n in v.layers))
            for layer in dict.fromkeys([panel.layer, *layers]):
                key = (line.metric, layer, line.split)
                found = band(members, key, log=panel.log)
                name = "|".join((line.metric, line.split, layer))
                if found is None:
                    why[name] = members[0].why(key)
                    continue
                curves[name] = {"x": found.epochs, "y": rounded(found.mean), "n": found.seeds}
                if found.seeds >= BAND_SEEDS:
                    curves[name] |= {"low": rounded(found.low), "high": rounded(found.high)}
    zeros = sorted(v.zero for v in members if v.zero is not None)
    return {
        "label": label,
        "seeds": len(members),
        "told": seeds_told([len(members)]),
        "zero": [zeros[0], zeros[len(zeros) // 2], zeros[-1]] if zeros else None,
        "curves": curves,
        "why": why,
    }


def _charts(found: Sequence[View], section: Section) -> list[dict[str, Any]]:
    charts = section_curves(found, section)
    tones = labels(charts)
    return [_chart(found, section, chart, drawn, tones) for chart, drawn in charts]


def _chart(
    found: Sequence[View], section: Section, chart: Chart, drawn: Sequence[Curve], tones: Sequence[str]
) -> dict[str, Any]:
    told = {"title": chart.title, "xLabel": chart.x_label, "yLabel": chart.y_label}
    told |= {"logX": chart.log_x, "logY": chart.log_y, "reverseX": chart.reverse_x}  # type: ignore[dict-item]
    missing = {"missing": f"no run holds {chart.metric} along {chart.x}"}
    if chart.y:
        xs, ys, values = grid(found, section.study, chart)
        return told | ({"xs": xs, "ys": ys, "z": [rounded(row) for row in values]} if xs else missing)
    told_curves = [
        {
            "label": c.label,
            "tone": tones.index(c.label),
            "x": c.x,
            "y": rounded(c.mean),
            "low": rounded(c.low),
            "high": rounded(c.high),
            "n": c.seeds,
            "main": not chart.main or c.label in chart.main,
        }
        for c in drawn
    ]
    if not told_curves:
        return told | missing
    seeds = seeds_told(n for c in drawn for n in c.seeds)
    return told | {"curves": told_curves, "marks": marks(found, section.study, chart), "seeds": seeds}


def _run(v: View, projection: Projection) -> dict[str, Any]:
    frames = [v.frame(e) for e in v.frames]
    keep, shown, labels = _chosen(frames)
    notes = []
    if frames and len(frames[0].get("labels", ())) > len(keep):
        notes.append(f"{len(keep)} of the {len(frames[0]['labels'])} stored points are drawn")
    classes = len(shown)
    if frames and "probs" in frames[0] and frames[0]["probs"].shape[1] > classes:
        notes.append(f"{classes} of {frames[0]['probs'].shape[1]} classes can be chosen")
    previous: dict[str, Array] = {}
    out = []
    for epoch, frame in zip(v.frames, frames, strict=True):
        scores = simplex_scores(frame)
        packed: dict[str, Any] = {"epoch": epoch}
        for name, values in scores.items():
            rows = shown if name in ("etf_means", "etf_weights") else keep
            packed[name] = pack(values[np.ix_(rows, shown)])
        if "boundary" in frame:
            packed["boundary"] = pack(frame["boundary"][keep])
        packed["layers"] = {}
        for layer in v.layers:
            if f"pca:{layer}" in frame:
                previous[layer] = flat(frame[f"pca:{layer}"][keep], projection, previous.get(layer))
                packed["layers"][layer] = pack(previous[layer])
        out.append(packed)
    return {
        "label": v.label,
        "group": v.group,
        "done": v.done,
        "zero": v.zero,
        "last": v.end,
        "layers": v.layers,
        "classes": [v.class_name(c) for c in shown],
        "labels": [shown.index(c) if c in shown else -1 for c in labels],
        "frames": out,
        "moments": v.moments(),
        "histograms": _histograms(v, frames),
        "depth": {m: d for m in _depth_names(v) if (d := _depth(v, m))},
        "notes": notes,
        "notDrawn": {source: v.why_not_drawn(source) for source in ("probs", "logits", "etf")},
    }


def _chosen(frames: Sequence[Mapping[str, Array]]) -> tuple[list[int], list[int], list[int]]:
    """Points that are drawn, classes that can be chosen, labels of the points."""
    if not frames or "labels" not in frames[0]:
        return [], [], []
    every = frames[0]["labels"].astype(int).tolist()
    step = max(1, math.ceil(len(every) / MAX_POINTS))
    keep = list(range(0, len(every), step))
    labels = [every[i] for i in keep]
    width = next((f[n].shape[1] for f in frames for n in ("probs", "logits") if n in f), max(every, default=-1) + 1)
    order = sorted(range(width), key=lambda c: (c not in set(labels), c))
    return keep, sorted(order[:MAX_CLASSES]), labels


def densities(v: View, frames: Sequence[Mapping[str, Array]]) -> dict[str, list[dict[str, Any]]]:
    """Density of each parameter's values at the epochs that hold a histogram of it."""
    out: dict[str, list[dict[str, Any]]] = {}
    names = {e: n for n, e in v.moments()}
    for epoch, frame in zip(v.frames, frames, strict=True):
        for key in (k for k in frame if k.startswith("hist:")):
            counts, edges = frame[key].astype(np.float64), frame[f"edges:{key[5:]}"].astype(np.float64)
            area = float(counts.sum()) * np.diff(edges)
            density = np.divide(counts, area, out=np.zeros_like(counts), where=area > 0)
            row = {"epoch": epoch, "when": names.get(epoch, f"epoch {epoch}"), "n": int(counts.sum())}
            out.setdefault(key[5:], []).append(row | {"edges": edges, "density": density})
    return {name: out[name] for name in sorted(out, key=lambda n: (n.startswith("classifier"), n))}


def _histograms(v: View, frames: Sequence[Mapping[str, Array]]) -> dict[str, Any]:
    return {
        name: [h | {f: rounded(h[f].tolist()) for f in ("edges", "density")} for h in rows]
        for name, rows in densities(v, frames).items()
    }


def _depth_names(v: View) -> list[str]:
    """Measures of layers, the known ones first, variants (other k) after them."""
    variants = sorted({m for m, _, _ in v.series if "@" in m and m.split("@")[0] in DEPTH_MEASURES})
    return [*DEPTH_MEASURES, *variants]


def _depth(v: View, metric: str) -> dict[str, Any]:
    """Layers x epochs of a measure, for each split that has it at two layers or more."""
    out: dict[str, Any] = {}
    for split in ("test", "train"):
        have = [name for name in v.layers if (metric, name, split) in v.series]
        if len(have) < 2:
            continue
        series = [v.series[metric, name, split] for name in have]
        epochs = sorted({e for s in series for e in s.epochs})

        def grid(field: str, series: Any = series, epochs: Any = epochs) -> list[list[float | None]]:
            tables = [dict(zip(s.epochs, getattr(s, field), strict=True)) for s in series]
            return [rounded([t.get(e, math.nan) for e in epochs]) for t in tables]

        out[split] = {"layers": have, "epochs": epochs}
        for field in ("values", "low", "high", "chance"):
            values = grid(field)
            if field == "values" or any(x is not None for row in values for x in row):
                out[split][field] = values
    return out


def _plain(value: Any) -> Any:
    """JSON-able copy: numbers that are not finite become null, numpy scalars become numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(x) for k, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
