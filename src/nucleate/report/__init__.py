"""Run folders -> figures and one self-contained page. Nothing but run folders is read."""

from __future__ import annotations

from nucleate.report.files import claim_figure as claim_figure
from nucleate.report.files import figures as figures
from nucleate.report.web import page as page
