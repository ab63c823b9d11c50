"""Networks whose width is an argument."""

from __future__ import annotations

from nucleate.models.build import MODELS as MODELS
from nucleate.models.build import build as build
from nucleate.models.build import initialise as initialise
