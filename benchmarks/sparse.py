"""Pruned networks against the best dense form on this machine: ratios measured in one run, in turns, float32.

python benchmarks/sparse.py [--only mlp convnet resnet block train threads roofline files] [--quick]

Masks are random: the time of a sparse layer depends on how many weights are left, hardly on which.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import nucleate.compact.choose as choose
from nucleate.compact import native
from nucleate.compact.choose import Accelerated, Choice, measure
from nucleate.compact.files import save_sparse
from nucleate.compact.fold import folded
from nucleate.compact.plan import Plan
from nucleate.compact.shrink import shrink
from nucleate.compact.sparse import SparseLinear
from nucleate.machine.matmul import fast_matmul, medium_keeps_float32
from nucleate.models import build
from nucleate.spec import ModelSpec


def prune(net: nn.Module, density: float, shape: str, *, skip: tuple[str, ...] = ()) -> nn.Module:
    """A copy with a random share of the weights left, in blocks of four outputs or one by one."""
    g = Generator().manual_seed(0)
    out = copy.deepcopy(net).eval()
    for name, layer in out.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or name in skip:
            continue
        mask = torch.rand(layer.weight.shape, generator=g) < density
        if shape == "block":
            mask = mask[::4].repeat_interleave(4, 0)[: len(mask)]
        layer.weight.data *= mask
    return out


def dense_forms(net: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """As it is; folded; channels_last; by the fast float32 route; and, for comparison, bf16 and dynamic int8."""
    forms: dict[str, nn.Module] = {"dense default": net, "dense folded": folded(net)}
    last = {"channels_last": x.dim() == 4}
    if x.dim() == 4:
        forms["dense channels_last"] = Accelerated(
            folded(net).to(memory_format=torch.channels_last), Choice(form="dense", **last)
        )
    if medium_keeps_float32():
        wide = folded(net).to(memory_format=torch.channels_last) if x.dim() == 4 else folded(net)
        forms["dense fast products"] = Accelerated(wide, Choice(form="dense", fast_matmul=True, **last))
    calls: dict[str, Callable[[], object]] = {name: partial(form, x) for name, form in forms.items()}
    calls["(bf16)"] = partial(copy.deepcopy(net).bfloat16(), x.bfloat16())
    if x.dim() == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls["(dynamic int8)"] = partial(
                torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8), x
            )
    return calls


def table(title: str, rows: list[tuple[str, dict[str, float], str, float | None]]) -> None:
    """Rows of (case, seconds by form, the form that counts, target)."""
    print(f"\n{title}\n")
    print("| case | ms | best dense ms | over best dense | over default | target | bf16 ms | int8 ms |")
    print("|---|---|---|---|---|---|---|---|")
    for case, seconds, form, target in rows:
        best = min(s for name, s in seconds.items() if name.startswith("dense"))
        aside = [f"{1e3 * seconds[n]:.2f}" if n in seconds else "" for n in ("(bf16)", "(dynamic int8)")]
        print(
            f"| {case} | {1e3 * seconds[form]:.3f} | {1e3 * best:.3f} | {best / seconds[form]:.2f} "
            f"| {seconds['dense default'] / seconds[form]:.2f} | {target or ''} | {aside[0]} | {aside[1]} |",
            flush=True,
        )


def compare(net: nn.Module, x: Tensor, cases: list[tuple[float, str, float | None]], skip: tuple[str, ...]) -> list:
    """One native call against all dense forms, for each (density, shape, target)."""
    rows = []
    for density, shape, target in cases:
        pruned = prune(net, density, shape, skip=skip)
        graph = folded(pruned)
        inside = {name: "block" if name in skip else shape for name, _ in graph.named_modules()}
        plan = Plan(graph, x, inside)
        assert torch.allclose(plan(x), pruned(x), atol=1e-4)
        seconds = measure({**dense_forms(pruned, x), "plan": partial(plan, x)})
        rows.append((f"{shape} {density:.0%}, batch {len(x)}", seconds, "plan", target))
    return rows


def mlp(quick: bool) -> None:
    """784-1024-1024-10, the classifier dense."""
    width = 128 if quick else 1024
    net = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    rows = compare(
        net,
        torch.randn(64, 784),
        [(0.1, "single", 3.2), (0.05, "single", 6.0), (0.1, "block", 6.5), (0.05, "block", 11.0)],
        ("4",),
    )
    rows += compare(
        net,
        torch.randn(1, 784),
        [(0.1, "single", 1.5), (0.05, "single", 3.0), (0.1, "block", None), (0.05, "block", None)],
        ("4",),
    )
    table(f"784-{width}-{width}-10", rows)


def convnet(quick: bool) -> None:
    """VGG-style, six 3 x 3 convolutions; the first one and the classifier dense."""
    spec = ModelSpec(name="convnet", width=8 if quick else 64, depth=6, batchnorm=True)
    net = build(spec, (3, 32, 32), 10, generator=Generator().manual_seed(0)).eval()
    skip = ("hidden.0.conv", "classifier")
    rows = []
    for batch in (16, 1):
        x = torch.randn(batch, 3, 32, 32)
        targets = (2.5, 4.0) if batch == 16 else (None, None)
        rows += compare(net, x, [(0.1, "single", targets[0]), (0.1, "block", targets[1]), (0.05, "single", None)], skip)
        half = copy.deepcopy(net)
        for name, p in half.named_parameters():
            if "conv" in name or "norm" in name:
                p.data[len(p) // 2 :] = 0
        small = shrink(half, None, x)
        calls = dense_forms(net, x)
        calls |= {"shrunk " + name: call for name, call in dense_forms(small, x).items() if name.startswith("dense")}
        seconds = measure(calls)
        best = min((n for n in seconds if n.startswith("shrunk")), key=seconds.__getitem__)
        rows.append((f"channels halved, {best}, batch {batch}", seconds, best, 1.7 if batch == 16 else None))
    table(f"convnet {spec.width}-{2 * spec.width}-{4 * spec.width}, 32 x 32", rows)


def resnet(quick: bool) -> None:
    """Residual network of four stages, three blocks each; stem, classifier and shortcuts dense."""
    spec = ModelSpec(name="resnet", width=4 if quick else 16, depth=1 if quick else 3, batchnorm=True)
    net = build(spec, (3, 32, 32), 10, generator=Generator().manual_seed(0)).eval()
    skip = ("stem.conv", "classifier", *(n for n, _ in net.named_modules() if "shortcut" in n))
    rows = []
    for batch in (16, 1):
        rows += compare(net, torch.randn(batch, 3, 32, 32), [(0.1, "single", None), (0.1, "block", None)], skip)
    table("ResNet 16-32-64-128, three blocks a stage, 32 x 32", rows)


def block(quick: bool) -> None:
    """MLP block of a transformer, in one native call and as sparse layers in torch's graph."""
    width = 96 if quick else 768
    net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    x, rows = torch.randn(128, width), []
    for shape, target in (("single", 3.0), ("block", 6.0)):
        pruned = prune(net, 0.1, shape)
        fast = choose._build(pruned, Choice(form="sparse", layers={"0": shape, "2": shape}), x)
        plan = Plan(folded(pruned), x, {"0": shape, "2": shape})
        seconds = measure({**dense_forms(pruned, x), "sparse": partial(fast, x), "plan": partial(plan, x)})
        rows.append((f"{shape} 10%, 128 tokens", seconds, "plan", target))
        rows.append((f"{shape} 10%, 128 tokens, as layers", seconds, "sparse", None))
    table(f"{width}-{4 * width}-{width} with GELU", rows)


def train(quick: bool) -> None:
    """One step of SGD with momentum, batch 64: surviving weights only, against masked dense weights."""
    print("\nTraining step, SGD with momentum 0.9, fused, batch 64\n")
    print("| net | density | masked dense ms | sparse ms | ratio | target |\n|---|---|---|---|---|---|")
    cases = [((784, 1024, 1024, 10), {0.1: 2.0, 0.05: 3.0}), ((784, 300, 100, 10), {0.1: 1.5, 0.05: 2.0})]
    if quick:
        cases = [((784, 64, 32, 10), {0.1: 0.0})]
    x, y = torch.randn(64, 784), torch.randint(10, (64,))
    for sizes, targets in cases:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        net = nn.Sequential(*layers[:-1])
        for density, target in targets.items():
            dense = prune(net, density, "single", skip=(str(len(layers) - 2),)).train()
            masks = [(p, (p != 0).float()) for p in dense.parameters() if p.dim() == 2]
            sparse = copy.deepcopy(dense)
            for i, layer in enumerate(list(sparse)):
                if isinstance(layer, nn.Linear) and i < len(layers) - 2:
                    sparse[i] = SparseLinear(layer)

            def step(model: nn.Module, optimizer: torch.optim.Optimizer, kept: list[tuple[Tensor, Tensor]]) -> None:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                with torch.no_grad():
                    for p, mask in kept:
                        p.mul_(mask)

            calls = {
                name: partial(step, m, torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9, fused=True), kept)
                for name, m, kept in (("dense", dense, masks), ("sparse", sparse, []))
            }
            with torch.enable_grad(), fast_matmul():
                s = measure(calls)
            print(
                f"| {'-'.join(map(str, sizes))} | {density:.0%} | {1e3 * s['dense']:.3f} | {1e3 * s['sparse']:.3f} "
                f"| {s['dense'] / s['sparse']:.2f} | {target} |",
                flush=True,
            )


def threads(quick: bool) -> None:
    """The same plan on one thread and on two, by the clock on the wall, fastest of many."""
    print("\nTwo threads\n\n| case | one thread ms | two threads ms | ratio | target |\n|---|---|---|---|---|")
    spec = ModelSpec(name="convnet", width=8 if quick else 64, depth=6, batchnorm=True)
    conv = build(spec, (3, 32, 32), 10, generator=Generator().manual_seed(0)).eval()
    width = 128 if quick else 1024
    net = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    for name, model, x in (("mlp", net, torch.randn(64, 784)), ("convnet", conv, torch.randn(16, 3, 32, 32))):
        graph = folded(prune(model, 0.1, "single"))
        plan = Plan(graph, x, {})
        best = {1: float("inf"), 2: float("inf")}
        for _ in range(20 if quick else 200 if name == "mlp" else 40):
            for count in best:
                torch.set_num_threads(count)
                start = time.perf_counter()
                plan(x)
                best[count] = min(best[count], time.perf_counter() - start)
        torch.set_num_threads(1)
        print(f"| {name} | {1e3 * best[1]:.3f} | {1e3 * best[2]:.3f} | {best[1] / best[2]:.2f} | 1.7 |", flush=True)


def roofline(quick: bool) -> None:
    """Each product of a plan: GFLOP/s on the surviving weights, and what the loads and the arithmetic allow."""
    size = 256 if quick else 1024
    a = torch.randn(size, size)
    with fast_matmul():
        peak = 2 * size**3 / min(_once(lambda: a @ a) for _ in range(20))
    print(
        f"\nRoofline, one thread: dense product {peak / 1e9:.0f} GFLOP/s. With two loads and two multiply-adds a cycle,"
    )
    print(
        "loads from the first-level cache allow 89% of the peak for single weights (nine loads for eight multiply-adds)"
    )
    print("and all of it for blocks; what is lost beyond that: starts and ends of short rows, the second-level cache.")
    print("\n| layer | form | left | GFLOP/s | share of the dense product's rate |\n|---|---|---|---|---|")
    spec = ModelSpec(name="convnet", width=8 if quick else 64, depth=6, batchnorm=True)
    conv = build(spec, (3, 32, 32), 10, generator=Generator().manual_seed(0)).eval()
    width = 128 if quick else 1024
    net = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    for model, x in ((net, torch.randn(64, 784)), (conv, torch.randn(16, 3, 32, 32))):
        for form in ("single", "block"):
            graph = folded(prune(model, 0.1, form))
            plan = Plan(graph, x, {name: form for name, _ in graph.named_modules()})
            plan(x)
            for i, name in enumerate(plan.names):
                if plan.array[i].kind != native.PRODUCT:
                    continue
                p = plan.array[i].product
                weight = graph.get_submodule(name).weight
                left = int((weight != 0).sum())
                step = native.Step.from_buffer_copy(plan.array[i])
                seconds = sorted(_once(lambda step=step: native.run(step)) for _ in range(5 if quick else 30))
                rate = 2 * left * p.lines * p.length / seconds[len(seconds) // 2]
                print(f"| {name} {tuple(weight.shape)} | {form} | {left:,} | {rate / 1e9:.1f} | {rate / peak:.0%} |")


def _once(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def files(quick: bool) -> None:
    """Bytes of LeNet-300-100, sparse against dense."""
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    print("\nFiles, LeNet-300-100\n\n| density | dense bytes | sparse bytes | ratio | target |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        save_file(net.state_dict(), Path(folder) / "dense")
        dense = (Path(folder) / "dense").stat().st_size
        for density, target in ((0.1, 6), (0.05, 10)):
            size = save_sparse(prune(net, density, "single"), Path(folder) / "sparse")
            print(f"| {density:.0%} | {dense:,} | {size:,} | {dense / size:.2f} | {target} |")


SECTIONS = {f.__name__: f for f in (files, mlp, block, train, threads, roofline, convnet, resnet)}


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run at all")
    options = parser.parse_args(argv)
    if not native.available():
        print(native.status())
        return 1
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    choose.LEAST_SECONDS = 0.0 if options.quick else 0.3
    torch.manual_seed(0)
    print(f"one thread; {native.status()}")
    try:
        with torch.no_grad():
            for name in options.only:
                SECTIONS[name](options.quick)
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
