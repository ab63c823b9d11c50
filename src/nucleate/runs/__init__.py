"""A run is a folder."""

from nucleate.runs.store import BusyError as BusyError
from nucleate.runs.store import Record as Record
from nucleate.runs.store import Run as Run
from nucleate.runs.store import RunError as RunError
from nucleate.runs.store import find_runs as find_runs
from nucleate.runs.store import open_run as open_run
from nucleate.runs.store import write_run as write_run
