"""What to run: frozen, keyword-only dataclasses, their hash, TOML in and out. Never imports torch."""

from nucleate.spec.bias import BiasSpec as BiasSpec
from nucleate.spec.capacity import CapacitySpec as CapacitySpec
from nucleate.spec.collapse import CollapseSpec as CollapseSpec
from nucleate.spec.compare import CompareSpec as CompareSpec
from nucleate.spec.compare import DenseSpec as DenseSpec
from nucleate.spec.compare import PruneSpec as PruneSpec
from nucleate.spec.connectivity import ConnectivitySpec as ConnectivitySpec
from nucleate.spec.descent import DescentSpec as DescentSpec
from nucleate.spec.lazy import LazySpec as LazySpec
from nucleate.spec.memorise import MemoriseSpec as MemoriseSpec
from nucleate.spec.parts import DataSpec as DataSpec
from nucleate.spec.parts import MeasureSpec as MeasureSpec
from nucleate.spec.parts import ModelSpec as ModelSpec
from nucleate.spec.parts import TrainSpec as TrainSpec
from nucleate.spec.probe import ProbeSpec as ProbeSpec
from nucleate.spec.prune import PruneRunSpec as PruneRunSpec
from nucleate.spec.supermask import SupermaskSpec as SupermaskSpec
from nucleate.spec.tickets import LadderSpec as LadderSpec
from nucleate.spec.tickets import TicketsSpec as TicketsSpec
from nucleate.spec.toml import SCHEMA_VERSION as SCHEMA_VERSION
from nucleate.spec.toml import SpecError as SpecError
from nucleate.spec.toml import digest as digest
from nucleate.spec.toml import from_dict as from_dict
from nucleate.spec.toml import from_toml as from_toml
from nucleate.spec.toml import to_dict as to_dict
from nucleate.spec.toml import to_toml as to_toml
