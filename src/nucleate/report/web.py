"""One self-contained HTML page of runs: it opens without a network and asks for nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nucleate.report.catalog import SECTIONS
from nucleate.report.charts import PARENTS, along_epochs, charted_sections
from nucleate.report.gather import View, groups, views
from nucleate.report.payload import embed, payload, pictured
from nucleate.report.scenes import Projection, check_projection
from nucleate.report.summary import summary
from nucleate.runs import Run
from nucleate.runs.store import write_atomic

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "simplex.js", "curves.js", "layers.js", "charts.js", "clauses.js", "page.js")
MARKS = {"holds": "✓", "fails": "✗", "inconclusive": "?"}
READING = (
    "Pictures show a fixed, class-balanced subsample of the training points. Curves are means over seeds of one spec "
    "with Student's 95 % interval, of the logarithm on log axes; fewer than three seeds have no band. Epoch 0 is the "
    "untrained network and is drawn as “start” on log axes; exact zeros lie on their own line below a log axis. "
    "The terminal phase begins at “zero error”: the first epoch without a training error in eval mode."
)


def page(
    runs: Sequence[Run],
    out: Path,
    *,
    verdicts: Sequence[Mapping[str, Any]] = (),
    audit: Mapping[str, Any] | None = None,
    projection: Projection = "pca",
) -> Path:
    """Write one self-contained HTML page of runs and return its path.

    Curves of all runs share their axes (seeds of one spec as mean and 95 % interval); pictures show one chosen run.
    A run that is not finished is shown as far as it went. `verdicts` are rows of claims: id, sentence, source,
    criterion, verdict, clauses (name, effect, low, high, bound, direction, unit), control, seeds, seconds, figure.
    `audit` is what `nucleate audit` found: facts and reading (text), rows (measure, models, tau, sign_error, worst,
    where, backwards).

    Raises:
        ValueError: without a run, for a damaged run, for an unknown projection or one whose library is missing.
    """
    check_projection(projection)
    found = views(runs)
    trained = along_epochs(found)
    always = {"about"} | ({"verdicts"} if verdicts else set()) | ({"audit"} if audit else set())
    sections = _sections(found, trained, always)
    script = (
        "(() => {\n'use strict';\n" + "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS) + "})();"
    )
    plotly = _plotly()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template("page.html").render(
        title=_title(found),
        lede=_lede(found),
        notices=_notices(found),
        policy=_policy(plotly, script),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        sections=sections,
        tables=[_table(label, members) for label, members in groups(trained).items()],
        verdicts=[_card(v) for v in verdicts],
        audit=audit,
        runs=[_about(v) for v in found],
        reading=READING,
        data=Markup(embed(payload(found, verdicts, projection))),
        plotly=Markup(plotly),
        script=Markup(script),
    )
    write_atomic(Path(out), text.encode("utf-8"))
    return Path(out)


def _sections(found: Sequence[View], trained: Sequence[View], always: set[str]) -> dict[str, tuple[str, str]]:
    """The page's sections in order: of trained networks, if there are any, and of the studies that have charts."""
    own = {k: v for k, v in SECTIONS.items() if k in always or (trained and k not in ("verdicts", "audit"))}
    about = own.pop("about")
    return own | {s.id: (s.title, s.caption) for s in charted_sections(found)} | {"about": about}


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _policy(*scripts: str) -> str:
    """Only the page's own scripts run, and nothing is fetched: a browser enforces what the page promises."""
    sums = [base64.b64encode(hashlib.sha256(s.encode("utf-8")).digest()).decode() for s in scripts]
    own = " ".join(f"'sha256-{s}'" for s in sums)
    return f"default-src 'none'; script-src {own}; style-src 'unsafe-inline'; img-src data: blob:"


def _title(found: Sequence[View]) -> str:
    names = list(dict.fromkeys(v.group for v in found))
    if len(names) > 3:
        asked = dict.fromkeys(f"{v.study} {v.spec.get('recipe', '')}".strip() for v in found if v.study not in PARENTS)
        if len(asked) > 6:
            studies = dict.fromkeys(v.study for v in found if v.study not in PARENTS)
            return f"{len(names)} experiments: {', '.join(studies)}"
        return f"{len(names)} experiments: {'; '.join(asked)}"
    if len(names) == 1:
        return names[0] if len(found) > 1 else found[0].label
    return f"{len(names)} experiments: " + "; ".join(names)


def _lede(found: Sequence[View]) -> str:
    first = found[0]
    data, model = _name(first.spec.get("data")), _name(first.spec.get("model"))
    facts = []
    if len(found) > 1:
        facts.append(f"{len(found)} runs")
    if data:
        size = (first.env.get("data") or {}).get("train")
        facts.append(f"data {data}" + (f" ({size:,} training points)" if isinstance(size, int) else ""))
    if model:
        size = first.env.get("parameters")
        facts.append(f"model {model}" + (f" ({size:,} parameters)" if isinstance(size, int) else ""))
    facts += [_progress(v) for v in found[:1]] if len(found) == 1 else []
    return " · ".join(filter(None, facts))


def _name(part: Any) -> str:
    """Name of a spec's data or model, which is a table of a study's own, or the name alone."""
    return str(part.get("name") or "") if isinstance(part, dict) else str(part or "")


def _progress(v: View) -> str:
    """When zero training error was, in studies that look for it, and the last epoch, where there are epochs."""
    last = max((s.epochs[-1] for s in v.series.values()), default=0)
    told = []
    if "zero_error_epoch" in v.env:
        told.append("zero training error " + ("not reached" if v.zero is None else f"at epoch {v.zero}"))
    if last:
        told.append(f"{'end' if v.done else 'last record'} at epoch {last}")
    return ", ".join(told)


def _notices(found: Sequence[View]) -> list[str]:
    trained = along_epochs(found)
    drawn = len(pictured(trained))
    told = (
        [f"Pictures are of {drawn} of the {len(trained)} runs; curves and tables of all."]
        if drawn < len(trained)
        else []
    )
    return told + [
        f"{v.label} is not finished: what follows is what was measured until epoch {v.end if v.end is not None else 0}."
        for v in found
        if not v.done
    ]


def _table(label: str, members: Sequence[View]) -> dict[str, Any]:
    if len(members) == 1:
        note = ", ".join(filter(None, ["1 seed", _progress(members[0])]))
    else:
        zeros = sorted(v.zero for v in members if v.zero is not None)
        span = "not reached" if not zeros else f"at epoch {zeros[0]}" + f" to {zeros[-1]}" * (zeros[-1] > zeros[0])
        share = f" in {len(zeros)} of them" if 0 < len(zeros) < len(members) else ""
        note = f"mean and 95 % interval of {len(members)} seeds, zero training error {span}{share}"
    return {"label": label, "note": note, "rows": summary(members)}


def _card(verdict: Mapping[str, Any]) -> dict[str, Any]:
    word = str(verdict.get("verdict", "inconclusive"))
    seeds, seconds = verdict.get("seeds"), verdict.get("seconds")
    tally = [f"{verdict['tier']} tier"] if verdict.get("tier") else []
    tally += [f"{seeds} seeds"] if seeds is not None else []
    tally += [f"{seconds:.0f} s"] if isinstance(seconds, int | float) else []
    return {
        "id": verdict.get("id", ""),
        "kind": word if word in MARKS else "inconclusive",
        "word": word,
        "symbol": MARKS.get(word, "?"),
        "sentence": verdict.get("sentence", ""),
        "source": verdict.get("source", ""),
        "criterion": verdict.get("criterion", ""),
        "control": verdict.get("control") or "none stated",
        "figure": verdict.get("figure", ""),
        "tally": ", ".join(tally),
        "clauses": [_clause(c) for c in verdict.get("clauses", ())],
    }


def _clause(clause: Mapping[str, Any]) -> dict[str, str]:
    unit = f" {clause['unit']}" if clause.get("unit") else ""
    effect, low, high = (_finite(clause.get(k)) for k in ("effect", "low", "high"))
    known = math.isfinite(low) and math.isfinite(high)
    sign = {"<=": "≤", ">=": "≥"}.get(str(clause.get("direction")), str(clause.get("direction", "")))
    return {
        "name": str(clause.get("name", "")),
        "effect": f"{effect:.3g}{unit}" if math.isfinite(effect) else str(clause.get("reason") or "undefined"),
        "interval": f"{low:.3g} to {high:.3g}{unit}" if known else str(clause.get("reason") or "–"),
        "bound": f"{sign} {_finite(clause.get('bound')):g}{unit}",
    }


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _about(v: View) -> dict[str, Any]:
    return {
        "label": v.label,
        "done": v.done,
        "name": v.run.path.name,
        "spec": json.dumps(v.spec, indent=1, ensure_ascii=False),
        "env": json.dumps(v.env, indent=1, ensure_ascii=False),
    }
