"""A point in a training to come back to: the full state, as bytes, so that nothing live is ever shared with it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nucleate.pruning.masks import Masks
from nucleate.training.draws import cuda_index


@dataclass(frozen=True)
class RewindPoint:
    """Weights, buffers, optimizer, scheduler, step and random states of one moment.

    A rewind that restores less than this is not one: Adam's moments, batch normalisation's running statistics, the
    learning rate and the order of the data all steer the steps that follow. The state is held as bytes: weights that
    train on afterwards cannot change it, and it can be written to a file as it is.

    >>> net = nn.Linear(2, 2)
    >>> point = RewindPoint.take(net)
    >>> _ = net.weight.data.fill_(7.0)
    >>> point.restore(net)
    >>> bool((net.weight == 7.0).any())
    False
    """

    content: bytes

    @classmethod
    def take(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        scheduler: Any = None,
        step: int = 0,
    ) -> RewindPoint:
        """Copy everything that the next step depends on.

        Args:
            model: its parameters and buffers.
            optimizer: its state of every parameter, and its groups' options (learning rate and the like).
            scheduler: anything with `state_dict` and `load_state_dict`.
            step: where the training stands; a data order that is a function of (seed, step) comes back with it.

        Raises:
            ValueError: if the optimizer's or the scheduler's state holds what is neither a tensor nor JSON.
        """
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
        notes: dict[str, Any] = {"step": step, "scalars": {}, "groups": None, "scheduler": None}
        if optimizer is not None:
            held = optimizer.state_dict()
            notes["groups"] = [{k: v for k, v in g.items() if k != "params"} for g in held["param_groups"]]
            for index, entry in held["state"].items():
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        tensors[f"optim.{index}.{key}"] = value
                    else:
                        notes["scalars"][f"{index}.{key}"] = value
        if scheduler is not None:
            notes["scheduler"] = scheduler.state_dict()
        tensors["random.torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors |= {f"random.cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
        version, words, gauss = random.getstate()
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
        inner = {k: np.asarray(v).tolist() for k, v in numpy_state["state"].items()}
        notes["python"] = [version, list(words), gauss]
        notes["numpy"] = {**numpy_state, "state": inner}
        try:
            header = json.dumps(notes).encode()
        except TypeError as error:
            raise ValueError(f"a rewind point holds tensors and plain values only: {error}") from None
        copied = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        return cls(len(header).to_bytes(8, "little") + header + save(copied))

    @property
    def step(self) -> int:
        """Where the training stood."""
        return int(self._notes["step"])

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's parameters and buffers then: new tensors at every call."""
        return {k.removeprefix("model."): v for k, v in self._tensors.items() if k.startswith("model.")}

    def draws(self, device: str) -> list[Tensor]:
        """States then of the generators that a network on a device draws from."""
        index = cuda_index(device)
        names = ["random.torch"] if index is None else ["random.torch", f"random.cuda.{index}"]
        return [self._tensors[name] for name in names]

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        scheduler: Any = None,
        masks: Mapping[str, Tensor] | None = None,
        rng: bool = True,
    ) -> None:
        """Go back: everything as it was at `take`, gradients dropped, then the masks applied.

        Args:
            model, optimizer, scheduler: of the same shapes as those that the point was taken of.
            masks: pruned weights become zero, and the optimizer's state of them too.
            rng: also the random generators of torch, numpy and Python.

        Raises:
            ValueError: if the optimizer or scheduler was not part of the point, or shapes differ.
        """
        notes, tensors = self._notes, self._tensors
        for given, key in ((optimizer, "groups"), (scheduler, "scheduler")):
            if given is not None and notes[key] is None:
                raise ValueError(f"this rewind point was taken without a {type(given).__name__}: give it to `take`")
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise ValueError(f"this rewind point was taken of another model: {error}") from None
        model.zero_grad(set_to_none=True)
        if optimizer is not None:
            entries: dict[int, dict[str, Any]] = {}
            found = {k.removeprefix("optim."): v for k, v in tensors.items() if k.startswith("optim.")}
            for name, value in {**found, **notes["scalars"]}.items():
                index, key = name.split(".", 1)
                entries.setdefault(int(index), {})[key] = value
            now = optimizer.state_dict()["param_groups"]
            groups = [{**own, **then} for own, then in zip(now, notes["groups"], strict=True)]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
        if scheduler is not None:
            scheduler.load_state_dict(notes["scheduler"])
        if masks is not None:
            Masks(masks).apply(model, optimizer)
        if rng:
            self._restore_generators(notes, tensors)

    @staticmethod
    def _restore_generators(notes: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        torch.set_rng_state(tensors["random.torch"])
        cuda = [v for k, v in sorted(tensors.items()) if k.startswith("random.cuda.")]
        if cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(cuda)
        version, words, gauss = notes["python"]
        random.setstate((version, tuple(words), gauss))
        inner = {k: np.array(v, np.uint32) if isinstance(v, list) else v for k, v in notes["numpy"]["state"].items()}
        np.random.set_state({**notes["numpy"], "state": inner})  # noqa: NPY002

    @property
    def _notes(self) -> dict[str, Any]:
        size = int.from_bytes(self.content[:8], "little")
        notes: dict[str, Any] = json.loads(self.content[8 : 8 + size])
        return notes

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return load(self.content[8 + int.from_bytes(self.content[:8], "little") :])
