"""How far a ladder has come, as bytes: level, stage, and the training inside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from nucleate.studies.ladder.task import Judged, Outcome
from nucleate.training.rewind import RewindPoint


@dataclass
class Progress:
    """Where to go on: at a stage of a level, perhaps inside its training."""

    level: int = 0
    stage: int = 0
    epochs: int = 0
    """Epochs behind, for the progress bar."""
    outcome: Outcome | None = None
    point: RewindPoint | None = None

    @property
    def at(self) -> tuple[int, int]:
        """Level and stage."""
        return self.level, self.stage


def pack_progress(progress: Progress) -> bytes:
    """Bytes of a progress; the inverse of `unpack_progress`."""
    notes: dict[str, Any] = {"level": progress.level, "stage": progress.stage, "epochs": progress.epochs}
    tensors = {}
    outcome, point = progress.outcome, progress.point
    if outcome is not None and point is not None:
        notes |= {"steps": outcome.steps, "losses": outcome.losses, "accuracies": outcome.accuracies}
        notes |= {"seconds": outcome.seconds, "evaluating": outcome.evaluating, "judged": []}
        tensors["point"] = _bytes(point.content)
        tensors |= {f"best.{name}": value.cpu() for name, value in outcome.best_weights.items()}
        if outcome.kept is not None:
            tensors["kept"] = _bytes(outcome.kept.content)
        for horizon, judged in outcome.judged.items():
            notes["judged"].append([horizon, judged.step, judged.stop, judged.censored, judged.loss])
            tensors[f"correct.{horizon}"] = torch.from_numpy(judged.correct)
            tensors[f"correct_end.{horizon}"] = torch.from_numpy(judged.correct_end)
    header = json.dumps(notes).encode()
    return len(header).to_bytes(8, "little") + header + save({k: v.contiguous().clone() for k, v in tensors.items()})


def unpack_progress(content: bytes) -> Progress:
    """Progress of bytes."""
    size = int.from_bytes(content[:8], "little")
    notes, tensors = json.loads(content[8 : 8 + size]), load(content[8 + size :])
    progress = Progress(level=notes["level"], stage=notes["stage"], epochs=notes["epochs"])
    if "point" in tensors:
        outcome = Outcome(
            notes["steps"],
            notes["losses"],
            notes["accuracies"],
            seconds=notes["seconds"],
            evaluating=notes["evaluating"],
        )
        outcome.best_weights = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        outcome.kept = RewindPoint(tensors["kept"].numpy().tobytes()) if "kept" in tensors else None
        for horizon, step, stop, censored, loss in notes["judged"]:
            right, last = (tensors[f"{name}.{horizon}"].numpy() for name in ("correct", "correct_end"))
            outcome.judged[horizon] = Judged(
                step=step, stop=stop, censored=censored, loss=loss, correct=right, correct_end=last
            )
        progress.outcome, progress.point = outcome, RewindPoint(tensors["point"].numpy().tobytes())
    return progress


def _bytes(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
