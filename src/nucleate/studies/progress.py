"""Work in parts, of which a stopped run keeps those that are done, and the state of the one in hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from nucleate.runs.store import Writer

CHECKPOINT_SECONDS = 20.0
"""A kill loses at most this much of a part that keeps its state."""


class Progress:
    """How many parts of the work are done, kept with the state of the part in hand."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        content = writer.restore()
        self.done, self.inside, self.earlier = 0, b"", 0.0
        if content:
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])
            self.done, self.earlier, self.inside = header["done"], header["seconds"], content[8 + length :]
        self.part = 0
        self._begun = self._last = time.monotonic()

    def skip(self) -> bool:
        """Whether the next part is done already."""
        self.part += 1
        return self.part <= self.done

    def finished(self) -> None:
        """The part in hand is done."""
        self.done = self.part
        self._save(b"")

    def pause(self, state: Callable[[], bytes]) -> None:
        """Keep the part's state, if the last was kept some time ago."""
        if time.monotonic() - self._last > CHECKPOINT_SECONDS:
            self._save(state())

    def _save(self, inside: bytes) -> None:
        header = json.dumps({"done": self.done, "seconds": self.seconds}).encode()
        self.writer.checkpoint(len(header).to_bytes(8, "little") + header + inside)
        self.inside, self._last = b"", time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on the run, its earlier attempts included."""
        return self.earlier + time.monotonic() - self._begun
