"""A shrunk or masked model as a file that runs without nucleate: ONNX or `torch.export`, checked by running it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.compact.shrink import TOLERANCE
from nucleate.compact.sparse import SparseConv2d, SparseLinear

KINDS = {".onnx": "ONNX", ".pt2": "torch.export program"}


def export(model: nn.Module, path: str | Path, example: Tensor) -> float:
    """Write a model in eval mode as an ONNX file (.onnx) or a `torch.export` program (.pt2), for any batch size.

    The file is read back and run on the example, and on twice as many points: the result is written only if its
    outputs are the model's. Zeros of a masked model take their place in the file; export what `shrink` gives, and the
    file is smaller and its network faster, without nucleate.

    Args:
        model: any module of torch's own operators; never changed.
        path: where to; its ending says which.
        example: inputs (N, ...).

    Returns:
        Largest difference of an output, file against model.

    Raises:
        ValueError: for another ending, a layer that only nucleate runs, a model that cannot be exported, or outputs
            that differ by more than 1e-5 of the largest; ImportError without the packages of the extra `onnx`.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(nn.Linear(3, 2), Path(folder) / "small.pt2", torch.ones(4, 3)) < 1e-6
    True
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise ValueError(f"{path.name} must end in one of {', '.join(KINDS)}: that says what is written")
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | SparseConv2d):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, which only nucleate runs: export the masked "
                "model, or what `shrink` gives"
            )
    plain = copy.deepcopy(model).cpu().eval()
    # A batch of one would be taken for a constant.
    points = example.cpu() if len(example) > 1 else example.cpu().repeat(2, *(1 for _ in example.shape[1:]))
    with torch.no_grad():
        given = plain(points)
    if not isinstance(given, Tensor):
        raise ValueError(
            f"{type(model).__name__} gives a {type(given).__name__}, not one tensor: export the part that gives one"
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        with torch.no_grad(), _quiet():
            try:
                (_to_onnx if path.suffix == ".onnx" else _to_program)(plain, made, points)
            except ImportError:
                raise
            # The exporters run the user's code on placeholders, and raise anything.
            except Exception as error:
                raise ValueError(
                    f"{type(model).__name__} cannot be exported as {KINDS[path.suffix]}: {str(error).strip()}"
                ) from error
            worst = 0.0
            for x in (points, torch.cat([points, points])):
                expected = plain(x)
                got = (_run_onnx if path.suffix == ".onnx" else _run_program)(made, x)
                difference = float((got - expected).abs().max()) if got.shape == expected.shape else float("inf")
                if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                    raise ValueError(f"the exported file's outputs differ by {difference:.2g}; nothing is written")
                worst = max(worst, difference)
        made.replace(path)
    return worst


def _to_onnx(model: nn.Module, path: Path, example: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model, (example,), str(path), dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False
    )


def _to_program(model: nn.Module, path: Path, example: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: batch},)), path)


def _run_onnx(path: Path, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(outputs[0])


def _run_program(path: Path, x: Tensor) -> Tensor:
    out: Tensor = torch.export.load(path).module()(x)
    return out


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporters tell of their own affairs; what matters is checked."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
