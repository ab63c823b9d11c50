"""Points and labels: bundled, synthetic, downloaded, or yours."""

from __future__ import annotations

from nucleate.data.dataset import DataError as DataError
from nucleate.data.dataset import Dataset as Dataset
from nucleate.data.download import fetch as fetch
from nucleate.data.folders import data_root as data_root
from nucleate.data.inventory import Listed as Listed
from nucleate.data.inventory import listing as listing
from nucleate.data.sources import SOURCES as SOURCES
from nucleate.data.sources import load as load
