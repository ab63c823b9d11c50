"""Descent: one family of models from too small to far too large (Belkin et al. 2019, Nakkiran et al. 2020)."""

from nucleate.studies.descent.study import run as run
from nucleate.studies.descent.study import size as size
