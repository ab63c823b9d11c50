"""In a notebook results show themselves, and names from outside stay text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import nucleate as nu
from nucleate.probes.records import Records

NASTY = '<img src=x onerror=alert(1)> & "q" </td>'


class Seen(HTMLParser):
    """Tags and text of a piece of HTML; every tag must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def run_with(path: Path, metric: str) -> Any:
    path.mkdir()
    (path / "spec.toml").write_text('study = "collapse"\n')
    (path / "env.json").write_text(json.dumps({"zero_error_epoch": NASTY}))
    row = {"epoch": 0, "layer": "", "split": NASTY, "metric": metric, "value": 0.25}
    (path / "records.jsonl").write_text(json.dumps(row) + "\n")
    return nu.open_run(path)


@pytest.mark.parametrize("kind", ["run", "records", "collapse"])
def test_results_render_as_tables_of_text(kind: str, tmp_path: Path) -> None:
    if kind == "run":
        shown = run_with(tmp_path / "<b>run", NASTY)._repr_html_()
    elif kind == "records":
        rows = [{"layer": NASTY, "split": "train", "metric": "nc1", "value": 0.25, "method": NASTY}]
        shown = Records(rows)._repr_html_()
    else:
        x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
        found = nu.collapse(x, torch.tensor([0, 0, 1, 1]))
        found.reasons["nc1"] = NASTY
        shown = found._repr_html_()
    page = Seen(shown)
    assert "img" not in page.tags and "table" in page.tags
    assert NASTY in page.text
    assert ("0.25" in page.text) if kind != "collapse" else ("nc1_quotient" in page.text and "0.01" in page.text)
