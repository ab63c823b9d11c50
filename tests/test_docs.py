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


def cells(page: Path) -> list[str]:
    """The code cells of a page, in order."""
    found = re.findall(
        r"^```\{code-cell\} ipython3\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [re.sub(r"\A(:[a-z-]+:.*\n)+", "", cell) for cell in found]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the site, in a folder of their own."""
    source = tmp_path_factory.mktemp("site") / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "generated", "jupyter_execute"))
    return source


@pytest.mark.slow
def test_the_site_builds_without_a_warning(copied: Path) -> None:
    pytest.importorskip("myst_nb", reason="needs the extra docs")
    # The dummy builder reads and resolves everything and spares the writing of files; the test below runs the cells.
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "dummy"]
    # What is not executed has no language.
    command += ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=ref.python,myst-nb.lexer"]
    path = os.pathsep.join([str(DOCS.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    built = subprocess.run(
        [*command, copied, copied.parent / "out"], env=env, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]


@pytest.mark.slow
def test_every_page_runs(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process for all pages, so that torch is imported and the shared run trained once."""
    pytest.importorskip("IPython", reason="needs the extra docs")
    monkeypatch.chdir(copied / "ideas")
    for page in sorted(Path().glob("*.md")):
        names: dict[str, object] = {"__name__": page.stem}
        assert cells(page), f"{page} has nothing to run"
        for cell in cells(page):
            exec(compile(cell, str(page), "exec"), names)


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
