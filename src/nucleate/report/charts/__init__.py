"""Charts of studies whose axis is not the epoch (density, width, noise, ...): one module a study declares them."""

from __future__ import annotations

from collections.abc import Sequence

from nucleate.report.charts import (
    bias,
    capacity,
    compare,
    connectivity,
    descent,
    lazy,
    prune,
    prune_stability,
    supermask,
    tickets,
)
from nucleate.report.charts.chart import Chart as Chart
from nucleate.report.charts.chart import Section as Section
from nucleate.report.gather import View

SECTIONS: tuple[Section, ...] = (
    *compare.SECTIONS,
    *prune.SECTIONS,
    *descent.SECTIONS,
    *tickets.SECTIONS,
    *connectivity.SECTIONS,
    *capacity.SECTIONS,
    *lazy.SECTIONS,
    *bias.SECTIONS,
    *supermask.SECTIONS,
    *prune_stability.SECTIONS,
)
"""Sections of all studies, in the order of the page: add a study's own here."""


PARENTS = frozenset({"dense"})
"""Studies that only make what others start from: they are not drawn."""


def charted_sections(found: Sequence[View]) -> list[Section]:
    """Sections of the studies that these runs belong to."""
    studies = {v.study for v in found}
    return [section for section in SECTIONS if section.study in studies and section.shown(found)]


def along_epochs(found: Sequence[View]) -> list[View]:
    """Runs of the other studies, which the sections of a network in training show."""
    charted = {section.study for section in SECTIONS} | PARENTS
    return [v for v in found if v.study not in charted]
