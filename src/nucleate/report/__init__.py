"""Run folders -> figures and one self-contained page. Nothing but run folders is read."""

from __future__ import annotations

from nucleate.report.web import page as page
