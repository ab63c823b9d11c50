"""nucleate data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nucleate.cli.arguments import parse, positionals


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Say what data is where, or download it."""

    data_root: Path | None = None
    """Folder of the data sets; NUCLEATE_DATA if none."""


def data(args: Sequence[str]) -> int:
    """`data list`: what is where; `data fetch NAME`: download it from its official mirrors."""
    words, rest = positionals(args)
    options = parse(DataOptions, rest, "nucleate data list | fetch NAME", default=DataOptions())

    from nucleate.data import fetch, listing

    if words == ["list"]:
        for row in listing(options.data_root):
            points = f"{row.train:,} + {row.test:,} points" if row.train is not None and row.test is not None else ""
            print(f"{row.name:14s}{row.kind or 'missing':11s}{points:26s}{row.path or row.problem}")
    elif len(words) == 2 and words[0] == "fetch":
        from tqdm import tqdm

        bars: dict[str, tqdm[Any]] = {}

        def tick(name: str, count: int, total: int) -> None:
            bar = bars.setdefault(name, tqdm(desc=name, total=total, unit="B", unit_scale=True))
            bar.update(count)

        try:
            folder = fetch(words[1], options.data_root, progress=tick)
        finally:
            for bar in bars.values():
                bar.close()
        print(folder)
    else:
        raise ValueError("write: nucleate data list, or: nucleate data fetch NAME")
    return 0
