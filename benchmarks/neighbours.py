"""Exact 5-NN against scikit-learn's brute force and faiss's flat index, on one thread: ratios measured in one run.

python benchmarks/neighbours.py [--quick] [--repeats 3] [--points FILE.npy]
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from nucleate.geometry._search import full_float32
from nucleate.geometry.neighbours import neighbour_search

K = 5
TARGETS = {"scikit-learn": 2.5, "faiss": 1.3}


@dataclass(frozen=True)
class Points:
    """A point set, and whether the promised ratios are stated for it."""

    name: str
    x: Tensor
    judged: bool = True


def images(n: int, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Random fields with the 1/f amplitude spectrum of natural images, values in 0..1."""
    white = torch.randn(n, channels, side, side, generator=generator)
    fy, fx = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    amplitude = 1 / (fy[:, None].square() + fx.square()).sqrt().clamp_min(1 / side)
    field = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(side, side)).flatten(1)
    out: Tensor = (0.5 + 0.2 * field / field.std()).clamp(0, 1)
    return out


def collapsed(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Ten classes of within-spread 1e-3, offset 5."""
    means = torch.randn(10, d, generator=generator)
    return 5 + means[torch.arange(n) % 10] + 1e-3 * torch.randn(n, d, generator=generator)


def point_sets(quick: bool, file: Path | None) -> list[Points]:
    g = torch.Generator().manual_seed(0)
    if file is not None:
        x = torch.from_numpy(np.load(file, allow_pickle=False)).float().flatten(1)
        return [Points(f"{file.stem} N={len(x):,} d={x.shape[1]}", x)]
    n = 2000 if quick else 10_000
    shapes = [(1, 28)] if quick else [(3, 32), (1, 28)]
    sets = []
    for channels, side in shapes:
        d = channels * side * side
        sets.append(Points(f"images N={n:,} d={d}", images(n, channels, side, g)))
        sets.append(Points(f"noise N={n:,} d={d}", torch.randn(n, d, generator=g)))
    sets.append(Points(f"collapsed N={n:,} d=512", collapsed(n, 512, g), judged=False))
    return sets


def faiss_search(x: Tensor) -> Tensor:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x.numpy())
    found = torch.from_numpy(index.search(x.numpy(), K + 1)[1])
    # Self is usually, not always, the first column: drop it wherever it is, else the last.
    own = found == torch.arange(len(x))[:, None]
    own[~own.any(1), -1] = True
    return found[~own].view(len(x), K)


def sklearn_search(x: Tensor) -> Tensor:
    model = NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=1).fit(x.numpy())
    return torch.from_numpy(model.kneighbors(return_distance=False))


def truth(x: Tensor) -> tuple[Tensor, Tensor]:
    """Fifty rows and their neighbours by differences in float64."""
    rows = torch.arange(0, len(x), max(1, len(x) // 50))
    found = []
    for i in rows.tolist():
        distances = torch.cat([(part.double() - x[i].double()).square_().sum(1) for part in torch.split(x, 128)])
        distances[i] = torch.inf
        found.append(distances.sort(stable=True).indices[:K])
    return rows, torch.stack(found)


def recall(found: Tensor, right: tuple[Tensor, Tensor]) -> float:
    rows, near = right
    return float((found[rows][:, :, None] == near[:, None]).any(2).double().mean())


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def product_seconds(x: Tensor, code: str) -> float:
    """CPU time of the products above the diagonal alone, extrapolated from blocks of 1024 rows."""
    block = x[:1024]
    dtype = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "int8": torch.int8}[code]
    a = block.to(dtype)
    with full_float32():
        best = min(seconds(lambda: torch._int_mm(a, a.T) if code == "int8" else a @ a.T) for _ in range(5))
    return best * (len(x) / len(block)) ** 2 / 2


def measure(points: Points, repeats: int) -> tuple[str, bool]:
    """One row of the table, and whether the promised ratios hold."""
    x = points.x
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: neighbour_search(x, K).indices,
        "scikit-learn": lambda: sklearn_search(x),
    }
    if importlib.util.find_spec("faiss") is not None:
        calls["faiss"] = lambda: faiss_search(x)
    best = dict.fromkeys(calls, float("inf"))
    kept: dict[str, float] = {}
    right = truth(x)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            found = call()
            best[name] = min(best[name], time.process_time() - start)
            kept[name] = recall(found, right)
    ours = neighbour_search(x, K)
    code = ours.prefilters[0]
    floor32, floor = product_seconds(x, "float32"), product_seconds(x, code)
    ratios = {name: best[name] / best["ours"] for name in TARGETS if name in best}
    met = all(ratio >= TARGETS[name] for name, ratio in ratios.items()) or not points.judged
    cells = [
        points.name,
        f"{best['ours']:.2f} s ({code})",
        *(f"{ratios[name]:.2f}" if name in ratios else "not installed" for name in TARGETS),
        " / ".join(f"{kept[name]:.3f}" if name in kept else "-" for name in ("ours", *TARGETS)),
        f"{float(ours.certified.double().mean()):.3f}",
        f"{best['ours'] / floor:.2f}",
        f"{best['ours'] / floor32:.2f}",
        ("yes" if met else "NO") if points.judged else "-",
    ]
    return "| " + " | ".join(cells) + " |", met


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 1 if a promised ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 points: a look, not a verdict")
    parser.add_argument("--repeats", type=int, default=3, help="the best of this many runs counts")
    parser.add_argument("--points", type=Path, help="measure on an .npy file of (points, ...) instead")
    args = parser.parse_args(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    met = True
    print("Exact 5-NN, one thread, CPU time. Ratios: their time over ours; floor: the products alone.\n")
    print("| points | ours | scikit-learn / ours | faiss flat / ours | recall@5 ours / scikit-learn / faiss ", end="")
    print("| certified | ours / floor | ours / float32 floor | 2.5 and 1.3 met |")
    print("|---|---|---|---|---|---|---|---|---|")
    try:
        with threadpool_limits(1):
            for points in point_sets(args.quick, args.points):
                row, fine = measure(points, args.repeats)
                print(row, flush=True)
                met &= fine
    finally:
        torch.set_num_threads(before)
    return 0 if met or args.quick else 1


if __name__ == "__main__":
    raise SystemExit(main())
