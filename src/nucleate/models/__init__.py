"""Networks whose width is an argument."""

from __future__ import annotations

from nucleate.models.build import build as build
