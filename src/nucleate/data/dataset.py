"""A data set in memory, and the one error that everything about data raises."""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class DataError(ValueError):
    """Data that cannot be found, read or used: says what was wrong, what was given and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Training and held-out points in memory, with the labels as trained and as they were."""

    name: str
    """Name to show beside results."""
    train_inputs: Tensor
    """float32, images (N, channels, height, width) or vectors (N, d), in units of `input_range`."""
    train_labels: Tensor
    """int64 (N,), the labels that are trained on, label noise included."""
    clean_train_labels: Tensor
    """int64 (N,), the same labels before label noise."""
    test_inputs: Tensor
    """float32, held out, the same shape as `train_inputs` but for the first axis."""
    test_labels: Tensor
    """int64, always clean."""
    class_names: tuple[str, ...]
    """One for each class; text from outside, not to be trusted as HTML."""
    superclasses: tuple[int, ...] | None = None
    """Coarse group of each class, where the classes have groups."""
    input_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value that an input can take; an attack's epsilon is a share of its width."""

    @property
    def num_classes(self) -> int:
        """Number of classes C; labels are 0 .. C-1."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def corrupted(self) -> Tensor:
        """Mask (N,), bool: training points whose label differs from the clean one."""
        return self.train_labels != self.clean_train_labels

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the data set but its name, as hexadecimal digits."""
        state = hashlib.sha256()
        for tensor in (
            self.train_inputs,
            self.train_labels,
            self.clean_train_labels,
            self.test_inputs,
            self.test_labels,
        ):
            state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            state.update(tensor.contiguous().numpy().data)
        state.update(repr((self.class_names, self.superclasses, self.input_range)).encode())
        return state.hexdigest()

    def coarse(self, labels: Tensor) -> Tensor:
        """Coarse groups (N,) of fine labels (N,).

        Raises:
            DataError: if the classes have no groups.
        """
        if self.superclasses is None:
            raise DataError(f"the classes of {self.name} have no coarse groups; 'superclasses' is a source that has")
        return torch.tensor(self.superclasses, device=labels.device)[labels]

    def _repr_html_(self) -> str:
        rows = {
            "training points": f"{len(self.train_labels):,}",
            "held-out points": f"{len(self.test_labels):,}",
            "input": " x ".join(map(str, self.input_shape)) + f" in [{self.input_range[0]:g}, {self.input_range[1]:g}]",
            "classes": f"{self.num_classes}: {', '.join(self.class_names[:12])}"
            + (", ..." if self.num_classes > 12 else ""),
            "corrupted labels": f"{int(self.corrupted.sum()):,}",
            "digest": self.digest[:12],
        }
        cells = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table><caption>{html.escape(self.name)}</caption>{cells}</table>"
