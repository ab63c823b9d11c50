"""A run is a folder: spec.toml, env.json, records.jsonl, tensors/, checkpoints/, DONE.

Every file is written to a temporary name, flushed to the disk and renamed, so a kill leaves the old file or the new
one. Records are the exception: they are appended, and a checkpoint stores how many bytes of them belong to it; what was
written after the checkpoint is cut off on resume and written again.
"""

from __future__ import annotations

import fcntl
import html
import json
import math
import os
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nucleate import spec as specs

Record = dict[str, Any]
"""One flat row: study, seed, step, epoch, layer, split, metric, value, and what the study adds."""

FORMAT = 1
_NAME = re.compile(r"\w[\w.-]*")


class RunError(ValueError):
    """A folder that is not a run, is damaged, or is in use."""


class BusyError(RunError):
    """Another process is working on the run."""


class Run:
    """A run folder, to be read. `open_run` makes one."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / "spec.toml").is_file():
            raise RunError(f"{self.path} is not a run folder: it holds no spec.toml")

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved spec as a nested dict."""
        try:
            return tomllib.loads((self.path / "spec.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"{self.path / 'spec.toml'} cannot be read: {error}") from None

    @property
    def env(self) -> dict[str, Any]:
        """What the run ran on and with: versions, machine, tuning, digests, layer and class names."""
        path = self.path / "env.json"
        found = _read_json(path)
        for name in ("layers", "class_names"):
            if not isinstance(found.get(name, []), list):
                raise RunError(f"{path} is damaged: {name} is {found[name]!r}")
        return found

    @property
    def records(self) -> list[Record]:
        """All complete rows, in the order of writing; a last line that a kill cut short is left out."""
        path = self.path / "records.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(_record(json.loads(line)))
            except ValueError as error:
                raise RunError(f"{path} is damaged in line {number}: {error}") from None
        return rows

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "DONE").is_file()

    @property
    def tensor_names(self) -> list[str]:
        """Names that `tensors` takes."""
        return sorted(p.stem for p in (self.path / "tensors").glob("*.safetensors"))

    def tensors(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Arrays of `tensors/<name>.safetensors`."""
        path = self.path / "tensors" / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None

    def select(self, **where: Any) -> list[Record]:
        """The rows whose fields have these values, for example `run.select(metric="nc1", split="train")`."""
        return [r for r in self.records if all(r.get(k) == v for k, v in where.items())]

    def table(self) -> list[Record]:
        """The last layer at zero error and at the end: one row for each measure."""
        zero = self.env.get("zero_error_epoch")
        rows = [r for r in self.records if r.get("layer") in ("", "penultimate")]
        last = max((r["epoch"] for r in rows), default=None)
        table = []
        for r in rows:
            if r["epoch"] == last:
                first = [q["value"] for q in rows if q["epoch"] == zero and _same_series(q, r)]
                at_zero = first[0] if first else math.nan
                table.append(
                    {k: r.get(k, "") for k in ("layer", "split", "metric")} | {"zero": at_zero, "end": r["value"]}
                )
        return table

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, done={self.done}, records={len(self.records)})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(r['split'])}</td><td>{html.escape(r['metric'])}</td>"
            f"<td>{r['zero']:.4g}</td><td>{r['end']:.4g}</td></tr>"
            for r in self.table()
        )
        state = "done" if self.done else "not finished"
        return (
            f"<p><b>{html.escape(self.path.name)}</b> ({state}), zero error at epoch "
            f"{html.escape(str(self.env.get('zero_error_epoch')))}</p><table><thead><tr><th>split</th><th>metric</th>"
            f"<th>at zero error</th><th>at the end</th></tr></thead><tbody>{rows}</tbody></table>"
        )


def _same_series(a: Record, b: Record) -> bool:
    return all(a.get(k) == b.get(k) for k in ("layer", "split", "metric", "convention", "k"))


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading.

    Raises:
        RunError: if the folder is not a run.
    """
    return Run(Path(path))


def find_runs(root: str | Path) -> list[Run]:
    """All runs at or below a folder, sorted by name.

    Raises:
        RunError: if there is no such folder, or no run in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise RunError(f"{root} is not a folder")
    # A running sweep removes folders below this one; os.walk passes over what is gone, rglob would not.
    found = [Run(Path(folder)) for folder, _, files in sorted(os.walk(root)) if "spec.toml" in files]
    if not found:
        raise RunError(f"no run folder at or below {root}")
    return found


class Writer(Run):
    """A run folder, locked and open for writing. `write_run` makes one."""

    def append(self, rows: Iterable[Record]) -> None:
        """Append rows to records.jsonl; a value that is not finite becomes null."""
        text = "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        path = self.path / "records.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            # Unbuffered: nothing is left over that closing the file would try to write again.
            with path.open("ab", buffering=0) as file:
                content = memoryview(text.encode())
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
        except OSError as error:
            # A row that the disk had half the room for goes.
            with suppress(OSError):
                os.truncate(path, size)
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from error

    def save_tensors(self, name: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write tensors/<name>.safetensors."""
        (self.path / "tensors").mkdir(exist_ok=True)
        contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        write_atomic(self.path / "tensors" / f"{name}.safetensors", save(contiguous))

    def update_env(self, **values: Any) -> None:
        """Add to env.json."""
        merged = self.env | values
        write_atomic(self.path / "env.json", _dump(merged))

    def checkpoint(self, state: bytes) -> None:
        """Store a state and the length of the records that belong to it, as one file."""
        records = self.path / "records.jsonl"
        size = records.stat().st_size if records.exists() else 0
        (self.path / "checkpoints").mkdir(exist_ok=True)
        write_atomic(self.path / "checkpoints" / "last", size.to_bytes(8, "little") + state)

    def restore(self) -> bytes | None:
        """The last checkpoint's state; records written after it are cut off. None (and no records) without one."""
        path = self.path / "checkpoints" / "last"
        content = path.read_bytes() if path.exists() else None
        size = int.from_bytes(content[:8], "little") if content else 0
        records = self.path / "records.jsonl"
        if records.exists():
            with records.open("r+b") as file:
                file.truncate(size)
                _flush(file)
        return content[8:] if content else None

    def finish(self) -> None:
        """Mark the run as done and drop its checkpoint, which nobody needs any more."""
        write_atomic(self.path / "DONE", b"")
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)


@contextmanager
def write_run(root: str | Path, spec: Any, *, env: Mapping[str, Any], **content: str) -> Iterator[Writer]:
    """Create or reopen the folder of a spec and hold its lock while it is written.

    The folder's name is `<study>-<recipe>-<digest>`, the digest over the spec and the content digests (data, source).
    The lock goes with the process that holds it, however that ends.

    Raises:
        RunError: if the folder cannot be written; BusyError, which is one, if another process works on it.
    """
    path = run_path(root, spec, **content)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror}") from None
    with held(path):
        try:
            # Whoever wrote these was killed: nobody else writes while the lock is held.
            for left_over in path.rglob(".*.tmp"):
                left_over.unlink()
            if not (path / "env.json").exists():
                write_atomic(
                    path / "env.json", json.dumps({"format": FORMAT, **env}, indent=1, sort_keys=True).encode()
                )
            if not (path / "spec.toml").exists():
                write_atomic(path / "spec.toml", specs.to_toml(spec).encode())
            yield Writer(path)
        except OSError as error:
            raise RunError(f"cannot write to {path}: {error.strerror or error}") from error


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    Raises:
        BusyError: if another process holds it.
        RunError: if the folder cannot be written.
    """
    try:
        lock = (path / ".lock").open("ab")
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process is working on {path}; wait for it, or look with `nucleate report`"
            ) from None
        yield


def run_path(root: str | Path, spec: Any, **content: str) -> Path:
    """Folder of a spec's run, whether it exists or not.

    Raises:
        RunError: if the recipe's name is none for a folder.
    """
    if not _NAME.fullmatch(spec.recipe):
        raise RunError(f"recipe must be made of letters, digits, '-', '_' and '.', not {spec.recipe!r}")
    return Path(root) / f"{spec.study}-{spec.recipe}-{specs.digest(spec, **content)}"


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new one, never a part.

    Raises:
        RunError: if it cannot be written (no permission, no space).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            _flush(file)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        raise


def _dump(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode()


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


_KINDS: dict[str, type | tuple[type, ...]] = {
    "metric": str, "value": (int, float), "layer": str, "split": str, "epoch": int
}  # fmt: skip


def _record(row: Any) -> Record:
    """A row with a metric and a value, null read as nan; what it states must be of the right kind."""
    if not isinstance(row, dict) or "metric" not in row:
        raise ValueError("it is no record with a metric")
    if row.get("value") is None:
        row["value"] = math.nan
    for name, kind in _KINDS.items():
        if row.get(name) is not None and not isinstance(row[name], kind):
            raise ValueError(f"{name} is {row[name]!r}")
    return row


def _finite(row: Record) -> Record:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold a table")
    return content
