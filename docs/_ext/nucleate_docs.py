"""What the pages take from the code itself: the reference, one page a package, and the state of the claims."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import nucleate
from nucleate.claims import CLAIMS
from nucleate.cli import COMMANDS
from nucleate.geometry.conventions import CONVENTIONS, Convention
from nucleate.report.catalog import LABELS

_SIGN = re.compile(r"(\||\*|_(?=\W|$))")
_SECTION = re.compile(r"(Args|Arguments|Attributes|Raises|Returns|Yields|Example|Examples|Note|Notes):")
_CODE = re.compile(r"``([^`]+)``|`([^`]+)`")


def skip_foreign_sources(app: Sphinx) -> None:
    """Sources of other libraries (base classes) are not parsed for comments; that would take a third of the build."""
    for name in [n for n in sys.modules if n.partition(".")[0] != "nucleate"]:
        ModuleAnalyzer.cache["module", name] = PycodeError("not ours")


def reference(app: Sphinx) -> None:
    """Write `api/generated/<package>.md`: every public module, with the members that are its own."""
    folder = Path(app.srcdir) / "api" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    packages = sorted(name for _, name, is_package in pkgutil.iter_modules(nucleate.__path__) if is_package)
    wanted = {f"{name}.md": _package_page(name) for name in packages if not name.startswith("_")}
    wanted["names.md"] = _names_page()
    for old in folder.iterdir():
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        page = folder / name
        # An untouched file keeps its time, so that a second build reads nothing twice.
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _package_page(package: str) -> str:
    home = import_module(f"nucleate.{package}")
    told = (home.__doc__ or "").strip()
    lines = [f"# nucleate.{package}", "", told, ""]
    modules = sorted(
        found.name
        for found in pkgutil.walk_packages(home.__path__, f"nucleate.{package}.")
        if not found.ispkg and not any(part.startswith("_") for part in found.name.split("."))
    )
    for module in modules:
        lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:", "```", ""]
    return "\n".join(lines)


def _names_page() -> str:
    lines = ["# The public names", "", "`import nucleate as nu`; each name is imported when it is first used.", ""]
    lines += ["| name | what it is | lives in |", "|---|---|---|"]
    for name in nucleate.__all__:
        value = getattr(nucleate, name)
        first = (value.__doc__ or "").strip().splitlines()[0].replace("|", "\\|")
        package = value.__module__.split(".")[1]
        lines.append(f"| `nu.{name}` | {first} | [{value.__module__}]({package}.md) |")
    return "\n".join(lines) + "\n"


def plain_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: `|w|`, `x*` and `k_` mean themselves, an indented line is a quotation."""
    # Of an attribute, napoleon would take the words before a colon in the first line for its type.
    out: list[str] = [""] if what == "attribute" else []
    section = False
    for line in lines:
        bare, before = line.lstrip(), out[-1] if out else ""
        indent = len(line) - len(bare)
        if indent == 0:
            section = bool(_SECTION.fullmatch(line)) or (section and not bare)
        steps = before.strip() and indent != len(before) - len(before.lstrip())
        if bare and steps and not section and not before.lstrip().startswith(("- ", "* ", ">>>", "...")):
            out.append("")
        out.append(line if bare.startswith((">>>", "...")) else _escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    out, end = [], 0
    for found in _CODE.finditer(line):
        out += [_SIGN.sub(r"\\\1", line[end : found.start()]), f"``{found[1] or found[2]}``"]
        end = found.end()
    return "".join(out) + _SIGN.sub(r"\\\1", line[end:])


class FromTable(SphinxDirective):
    """A directive that turns rows of cells into a table."""

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], before: Sequence[str] = ()) -> list[nodes.Node]:
        """The nodes of a table, with paragraphs before it."""
        lines = [*before, "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(re.sub(r"([|*<])", r"\\\1", cell) for cell in row) + " |" for row in rows]
        holder = nodes.Element()
        self.state.nested_parse(lines, self.content_offset, holder)  # type: ignore[arg-type]
        return holder.children


class ConventionTable(FromTable):
    """Every named convention; what it has in common with the first is left out."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        names = [f.name for f in fields(Convention) if f.name != "source"]
        usual = CONVENTIONS["papyan2020"]
        rows = []
        for name, convention in CONVENTIONS.items():
            values = {n: getattr(convention, n) for n in names}
            same = name != "papyan2020"
            told = [f"{n}: {v}" for n, v in values.items() if not same or v != getattr(usual, n)]
            rows.append((f"`{name}`", convention.source, ", ".join(told) or "the same"))
        return self.table(
            ("name", "source", "how it differs from `papyan2020` (whose own choices are given in full)"), rows
        )


class MeasureTable(FromTable):
    """Every measure that the report names."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        return self.table(("metric", "what it is"), [(f"`{name}`", label) for name, label in LABELS.items()])


class ClaimTable(FromTable):
    """Claims of one part of the subject: what each says and how to try it, or that it is not there yet."""

    has_content = True
    option_spec: ClassVar = {"commands": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Two paragraphs and a table, from the registries of commands and claims."""
        commands = self.options.get("commands", "").split()
        there = [f"`nucleate {c}`" for c in commands if c in COMMANDS]
        planned = [f"`nucleate {c}`" for c in commands if c not in COMMANDS]
        before = []
        if there:
            before += [f"Commands: {', '.join(there)}, and `nucleate claims ID [--quick]`.", ""]
        if planned:
            before += [f"Not there yet: {', '.join(planned)}.", ""]
        rows = []
        for id in map(str.strip, self.content):
            claim = CLAIMS.get(id)
            rows.append(
                (f"`{id}`", "not there yet", "", "")
                if claim is None
                else (f"`{id}`", claim.sentence, claim.criterion, f"`{claim.figure}`" if claim.figure else "")
            )
        return self.table(("claim", "what it says", "holds if", "section of the page"), rows, before)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", reference)
    app.connect("builder-inited", skip_foreign_sources, priority=900)
    app.connect("autodoc-process-docstring", plain_text, priority=100)
    app.add_directive("claims", ClaimTable)
    app.add_directive("conventions", ConventionTable)
    app.add_directive("measures", MeasureTable)
    return {"parallel_read_safe": True}
