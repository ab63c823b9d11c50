"""What each artefact of pruning is worth: bytes on disk, bytes in memory, time, and whether loading it needs nucleate.

python benchmarks/artefacts.py [--quick]

784-1024-1024-10, batch 64, one thread. Single weights and 4x1 blocks at 10 % of the hidden layers' weights; for
shrinking, three of four hidden units are pruned whole. Each file is loaded in a process in which importing nucleate
fails: "needs nucleate" is what came of it.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nucleate.compact.choose as choose
from nucleate.compact.choose import accelerate, measure
from nucleate.compact.export import export
from nucleate.compact.files import load_sparse, save_sparse
from nucleate.compact.shrink import shrink
from nucleate.pruning.prune import prune

LOADERS = {
    ".safetensors": "from safetensors.torch import load_file; assert {names!r} <= load_file(path).keys()",
    ".pt2": "import torch; torch.export.load(path).module()(torch.ones(2, 784))",
    ".onnx": "import onnxruntime; onnxruntime.InferenceSession(path)",
}


def loads_alone(path: Path, names: set[str]) -> bool:
    """Whether the network's tensors, or the network, are there without nucleate."""
    code = f"import sys; sys.modules['nucleate'] = None; path = {str(path)!r}; "
    code += LOADERS[path.suffix].format(names=names)
    return (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=False).returncode == 0
    )


def bytes_of(model: nn.Module) -> int:
    """Bytes of parameters and buffers, each memory once."""
    return sum({t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())


def onnx_session(path: Path, x: Tensor) -> Callable[[], object]:
    """A call of the file in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: x.numpy()})


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a narrow network: does it run at all")
    quick = parser.parse_args(argv).quick
    torch.set_num_threads(1)
    choose.LEAST_SECONDS = 0.0 if quick else 0.3
    torch.manual_seed(0)
    width = 64 if quick else 1024
    net = nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    ).eval()
    x, names = torch.randn(64, 784), set(net.state_dict())
    masked, blocks, units = (copy.deepcopy(net) for _ in range(3))
    masks = prune(masked, "magnitude", 0.1).masks
    prune(blocks, "magnitude", 0.1, shape="block:4x1")
    prune(units, "magnitude", 0.25, shape="unit", scope="uniform")
    small = shrink(units, None, x)
    rows: dict[str, tuple[Path | None, int, Callable[[], object]]] = {}
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        for title, model in (("dense state_dict", net), ("masked state_dict", masked)):
            path = folder / f"{title.split()[0]}.safetensors"
            save_file(model.state_dict(), path)
            rows[title] = path, bytes_of(model), partial(model, x)
        path = folder / "sparse.safetensors"
        save_sparse(masked, path, masks)
        loaded = copy.deepcopy(net)
        loaded.load_state_dict(load_sparse(path))
        rows["sparse file, loaded into the plain model"] = path, bytes_of(loaded), partial(loaded, x)
        path = folder / "shrunk.safetensors"
        save_file(small.state_dict(), path)
        rows["shrunk model, state_dict"] = path, bytes_of(small), partial(small, x)
        for title, model in (("masked", masked), ("shrunk", small)):
            path = folder / f"{title}.pt2"
            export(model, path, x)
            rows[f"{title} model, torch.export"] = path, bytes_of(model), partial(torch.export.load(path).module(), x)
            path = folder / f"{title}.onnx"
            try:
                export(model, path, x)
                rows[f"{title} model, ONNX in onnxruntime"] = path, bytes_of(model), onnx_session(path, x)
            except ImportError as error:
                print(f"ONNX: skipped, {error}")
        for title, model in (("single weights", masked), ("4x1 blocks", blocks)):
            fast = accelerate(model, x)
            fast(x)
            # It keeps the dense model for what its plans do not serve.
            held = bytes_of(fast) + sum(plan.bytes for plan in getattr(fast, "_plans", {}).values() if plan)
            rows[f"accelerated model, {title}"] = None, held, partial(fast, x)
        seconds = measure({title: call for title, (_, _, call) in rows.items()})
        dense = rows["dense state_dict"]
        print("| artefact | disk, share of dense | memory, share of dense | times faster | needs nucleate |")
        print("|---|---|---|---|---|")
        for title, (path, held, _) in rows.items():
            assert dense[0] is not None
            disk = "not a file" if path is None else f"{path.stat().st_size / dense[0].stat().st_size:.2f}"
            needs = "yes" if path is None or not loads_alone(path, names) else "no"
            speed = seconds["dense state_dict"] / seconds[title]
            print(f"| {title} | {disk} | {held / dense[1]:.2f} | {speed:.2f} | {needs} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
