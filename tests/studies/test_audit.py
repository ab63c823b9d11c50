"""The audit against rankings by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nucleate.cli.main import main
from nucleate.runs import find_runs
from nucleate.studies.audit import Model, audit, models, told


def model(lr: float, width: int, gap: float, *, noise: float = 0.0, **measures: float) -> Model:
    return Model((("lr", lr), ("width", width)), measures, gap, noise, 0.0)


def test_tau_and_sign_errors_by_hand() -> None:
    found = [
        model(0.1, 8, 0.1, good=1, bad=9, chi=0.9),
        model(0.1, 16, 0.2, good=2, bad=8, chi=0.8),
        model(0.2, 8, 0.3, good=3, bad=7, chi=0.7),
        model(0.2, 16, 0.4, good=4, bad=6, chi=0.6),
    ]
    rows = {r.measure: r for r in audit(found)}
    assert (rows["good"].tau, rows["good"].sign_error, rows["good"].backwards) == (1.0, 0.0, False)
    assert (rows["bad"].tau, rows["bad"].sign_error, rows["bad"].backwards) == (-1.0, 1.0, True)
    assert rows["chi"].tau == 1.0, "more neighbours of the same class should mean a smaller gap"
    assert "ranks backwards" in told(found) and "confounded" not in told(found)


def test_the_worst_hyperparameter_is_named_and_noise_left_out() -> None:
    found = [
        model(0.1, 8, 0.1, m=1.0),
        model(0.1, 16, 0.2, m=0.5),
        model(0.2, 8, 0.3, m=3.0),
        model(0.2, 16, 0.4, m=2.0),
    ]
    (row,) = audit(found)
    assert row.where == "width" and row.worst == 1.0 and row.sign_error == 0.5
    (quiet,) = audit([Model(f.config, f.measures, f.gap, 1.0, 0.0) for f in found])
    assert math.isnan(quiet.sign_error), "no pair of gaps is apart by more than its noise"


def test_from_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            folder = tmp_path / f"demo-{lr}-{seed}"
            folder.mkdir()
            (folder / "spec.toml").write_text(f'study = "demo"\nrecipe = "r"\nseed = {seed}\n\n[train]\nlr = {lr}\n')
            (folder / "env.json").write_text("{}")
            rows = [
                {"seed": seed, "metric": m, "split": s, "layer": "", "width": w, "epoch": e, "value": v}
                for w in (8, 16)
                for e in (0, 5)
                for m, s, v in (
                    ("error", "train", 0.0),
                    ("error", "test", lr + w / 100),
                    ("norm", "", lr * w + e),
                    ("anti", "", -lr * w),
                )
            ]
            (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = models(find_runs(tmp_path))
    assert len(found) == 4 and all(set(m.measures) == {"norm", "anti"} for m in found)
    assert {dict(m.config)["train.lr"] for m in found} == {0.1, 0.2}
    assert main(["audit", str(tmp_path)]) == 0
    assert "norm" in capsys.readouterr().out
    assert main(["audit"]) == 2
    assert main(["audit", str(tmp_path), "--report", str(tmp_path / "audit.html")]) == 0
    text = (tmp_path / "audit.html").read_text().partition('id="audit"')[2].partition("</section>")[0]
    assert '<th scope="row">norm</th><td class="number">4</td><td class="number">0.91</td>' in text
    assert "4 models; gap" in text and text.count("<td>ranks backwards</td>") == 1, "anti alone ranks backwards"
    assert main(["audit", str(tmp_path), "--report", str(tmp_path / "no" / "a.html")]) == 2
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "spec.toml").write_text('study = "demo"\nseed = 0\n')
    with pytest.raises(ValueError, match="these runs hold 0"):
        models(find_runs(tmp_path / "one"))
