"""Points and labels: bundled, synthetic, downloaded, or yours."""

from __future__ import annotations

from nucleate.data.dataset import DataError as DataError
from nucleate.data.dataset import Dataset as Dataset
from nucleate.data.sources import load as load
