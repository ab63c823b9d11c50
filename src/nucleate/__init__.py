"""Measure how a network's classes collapse into a simplex, find the sparse network inside it, and ship that one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nucleate.compact.choose import accelerate as accelerate
    from nucleate.compact.files import load_sparse as load_sparse
    from nucleate.compact.files import save_sparse as save_sparse
    from nucleate.compact.shrink import shrink as shrink
    from nucleate.geometry.collapse import Collapse as Collapse
    from nucleate.geometry.collapse import collapse as collapse
    from nucleate.geometry.dimension import intrinsic_dimension as intrinsic_dimension
    from nucleate.geometry.neighbours import neighbour_hit as neighbour_hit
    from nucleate.geometry.neighbours import neighbours as neighbours
    from nucleate.geometry.similarity import cka as cka
    from nucleate.geometry.simplex import simplex_etf as simplex_etf
    from nucleate.kernels.empirical import empirical_ntk as empirical_ntk
    from nucleate.kernels.exact import ntk as ntk
    from nucleate.probes.layers import probe as probe
    from nucleate.probes.metric import NeuralCollapse as NeuralCollapse
    from nucleate.probes.tap import tap as tap
    from nucleate.pruning.coverage import coverage as coverage
    from nucleate.pruning.masks import Masks as Masks
    from nucleate.pruning.prune import prune as prune
    from nucleate.pruning.pruner import Pruner as Pruner
    from nucleate.pruning.scores import scores as scores
    from nucleate.pruning.select import select as select
    from nucleate.runs.store import open_run as open_run

_HOMES = {
    "Collapse": "nucleate.geometry.collapse",
    "Masks": "nucleate.pruning.masks",
    "NeuralCollapse": "nucleate.probes.metric",
    "Pruner": "nucleate.pruning.pruner",
    "accelerate": "nucleate.compact.choose",
    "cka": "nucleate.geometry.similarity",
    "collapse": "nucleate.geometry.collapse",
    "coverage": "nucleate.pruning.coverage",
    "empirical_ntk": "nucleate.kernels.empirical",
    "intrinsic_dimension": "nucleate.geometry.dimension",
    "load_sparse": "nucleate.compact.files",
    "neighbour_hit": "nucleate.geometry.neighbours",
    "neighbours": "nucleate.geometry.neighbours",
    "ntk": "nucleate.kernels.exact",
    "open_run": "nucleate.runs.store",
    "probe": "nucleate.probes.layers",
    "prune": "nucleate.pruning.prune",
    "save_sparse": "nucleate.compact.files",
    "scores": "nucleate.pruning.scores",
    "select": "nucleate.pruning.select",
    "shrink": "nucleate.compact.shrink",
    "simplex_etf": "nucleate.geometry.simplex",
    "tap": "nucleate.probes.tap",
}
"""Where each public name lives; torch is imported when the first one is used."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nucleate' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
