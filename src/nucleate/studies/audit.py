"""Audit: does a measure rank the models of a sweep as their generalisation gap does (Jiang et al. 2020)?

Never a single score: a good average correlation hides failures (Dziugaite et al. 2020), so that the worst
hyperparameter is told beside the mean, and a measure that ranks backwards is named.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from nucleate.runs import Run

CELL = ("width", "samples", "noise", "antidote", "density", "method", "arm")
"""Fields of records that tell models of one run apart."""
LEFT_OUT = ("seed", "seeds", "recipe", "widths", "samples", "noises", "ridges", "decays", "points", "threads")
"""Fields of specs that are no hyperparameter of a model."""
OUTCOMES = ("error", "accuracy", "loss", "clean_error", "epoch_loss")
SAFER = ("chi", "fgsm_accuracy", "pgd_accuracy", "corruption_accuracy", "min_perturbation", "ncc_accuracy", "recovered",
         "margin", "normalised_margin", "noise_sigma")  # fmt: skip
"""Measures of which more should mean a smaller gap; of all others less should."""
SAME_FIT = 0.01
"""Spread of training errors up to which models count as equally fitted."""


@dataclass(frozen=True)
class Model:
    """One configuration: means over its seeds."""

    config: tuple[tuple[str, Any], ...]
    measures: dict[str, float]
    gap: float
    """Test error minus training error, labels as given."""
    noise: float
    """Standard error of the gap over seeds; 0 for one seed."""
    train_error: float


@dataclass(frozen=True)
class Audited:
    """What became of a measure."""

    measure: str
    models: int
    tau: float
    """Kendall's tau-b with the gap, signed so that 1 is the order that the measure promises."""
    sign_error: float
    """Share of pairs differing in one hyperparameter that are ordered the other way; mean over hyperparameters."""
    worst: float
    where: str
    """Hyperparameter of the worst sign error."""

    @property
    def backwards(self) -> bool:
        """Whether it ranks worse than a coin."""
        return self.tau < 0 or self.sign_error > 0.5


def models(runs: Sequence[Run]) -> list[Model]:
    """Configurations of all runs with a test and a training error, by their last epoch.

    Raises:
        ValueError: for fewer than three of them: a ranking needs more.
    """
    table: dict[tuple[tuple[str, Any], ...], dict[Any, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        spec = dict(_flat(run.spec))
        for row in run.records:
            if row.get("layer", "") in ("", "penultimate") and row.get("seed", spec.get("seed")) is not None:
                own = {k: row[k] for k in CELL if k in row}
                config = tuple(sorted({**spec, **own}.items(), key=lambda item: item[0]))
                config = tuple((k, v) for k, v in config if k in CELL or k.rsplit(".", 1)[-1] not in LEFT_OUT)
                name = row["metric"] + (f" ({row['split']})" if row["split"] else "")
                table[config][row.get("seed", spec.get("seed"))][name] = row["value"]
    found = []
    for config, seeds in table.items():
        gaps, errors = [], []
        for own in seeds.values():
            test, train = (own.get(f"error ({s})", 1 - own.get(f"accuracy ({s})", math.nan)) for s in ("test", "train"))
            if math.isfinite(test) and math.isfinite(train):
                gaps.append(test - train)
                errors.append(train)
        if gaps:
            names = set.intersection(*(set(own) for own in seeds.values()))
            measures = {
                n: float(np.mean([own[n] for own in seeds.values()]))
                for n in sorted(names)
                if n.split(" ")[0] not in OUTCOMES
            }
            noise = float(np.std(gaps, ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else 0.0
            found.append(Model(config, measures, float(np.mean(gaps)), noise, float(np.mean(errors))))
    if len(found) < 3:
        raise ValueError(f"an audit ranks models: these runs hold {len(found)} with a test and a training error")
    return found


def audit(found: Sequence[Model]) -> list[Audited]:
    """Kendall's tau and sign errors of every measure that at least three models have.

    A pair counts where two models differ in exactly one hyperparameter and their gaps by more than two standard errors.
    """
    names = sorted({n for m in found for n in m.measures})
    out = []
    for name in names:
        have = [m for m in found if math.isfinite(m.measures.get(name, math.nan))]
        values = [m.measures[name] for m in have]
        if len(have) < 3 or max(values) == min(values):
            continue
        sign = -1.0 if name.split(" ")[0] in SAFER else 1.0
        tau = sign * float(kendalltau(values, [m.gap for m in have]).statistic)
        wrong: dict[str, list[bool]] = defaultdict(list)
        for a, b in itertools.combinations(have, 2):
            differ = _difference(a, b)
            apart = abs(a.gap - b.gap) > 2 * math.hypot(a.noise, b.noise)
            if differ and apart and a.measures[name] != b.measures[name]:
                wrong[differ].append(sign * (a.measures[name] - b.measures[name]) * (a.gap - b.gap) < 0)
        shares = {field: float(np.mean(hits)) for field, hits in wrong.items()}
        where = max(shares, key=shares.__getitem__, default="")
        mean = float(np.mean(list(shares.values()))) if shares else math.nan
        out.append(Audited(name, len(have), tau, mean, shares.get(where, math.nan), where))
    return out


READING = "tau 1: the order that the measure promises; sign error 0.5: a coin. No measure here is a score."


def told(found: Sequence[Model]) -> str:
    """The audit as a table, with what it must not be read as."""
    lines = [*facts(found), f"{'measure':34s}{'models':>7s}{'tau':>8s}{'sign error':>12s}{'worst':>8s}  at"]
    for row in rows(found):
        note = "  ranks backwards" if row["backwards"] else ""
        lines.append(
            f"{row['measure']:34s}{row['models']:7d}{row['tau']:>8s}{row['sign_error']:>12s}{row['worst']:>8s}"
            f"  {row['where']}{note}"
        )
    return "\n".join([*lines, READING])


def facts(found: Sequence[Model]) -> list[str]:
    """How many models there are, how far their gaps range, and a warning where they do not fit equally well."""
    errors, gaps = [m.train_error for m in found], [m.gap for m in found]
    lines = [f"{len(found)} models; gap: test error minus training error, {min(gaps):.3g} to {max(gaps):.3g}"]
    if max(errors) - min(errors) > SAME_FIT:
        lines.append(
            f"warning: training errors range from {min(errors):.3g} to {max(errors):.3g}, which confounds the ranking"
        )
    return lines


def rows(found: Sequence[Model]) -> list[dict[str, Any]]:
    """The audit as rows to show, the best tau first: numbers as text, backwards as a flag."""
    return [
        {
            "measure": row.measure,
            "models": row.models,
            "tau": f"{row.tau:.2f}",
            "sign_error": _share(row.sign_error),
            "worst": _share(row.worst),
            "where": row.where,
            "backwards": row.backwards,
        }
        for row in sorted(audit(found), key=lambda r: -r.tau)
    ]


def _share(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _difference(a: Model, b: Model) -> str:
    """Name of the one hyperparameter in which two models differ; empty for none or several."""
    first, second = dict(a.config), dict(b.config)
    names = [k for k in first.keys() | second.keys() if first.get(k) != second.get(k)]
    return names[0] if len(names) == 1 else ""


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key not in LEFT_OUT:
            yield prefix + key, str(value) if isinstance(value, list) else value
        elif key == "seed" and not prefix:
            yield key, value
