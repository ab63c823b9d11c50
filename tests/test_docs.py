"""The documentation builds without a warning, every page of it executed, and says nothing that is not there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nucleate.claims import CLAIMS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="needs the extra docs")
    source = tmp_path / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "generated", "jupyter_execute"))
    # The dummy builder reads, executes and resolves everything, and spares only the writing of files.
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "dummy", source, tmp_path / "out"]
    home = Path(__file__).parent.parent / "src"
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    built = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    assert built.stderr == ""


def test_the_subject_page_has_every_claim_once() -> None:
    lines = (DOCS / "subject.md").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", line)]
    assert len(named) == len(set(named))
    assert set(CLAIMS) <= set(named), "a claim that the subject page does not place"


def test_every_page_is_short_and_in_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in sorted((DOCS / "ideas").glob("*.md")):
        assert f"ideas/{page.stem}" in index
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 110
