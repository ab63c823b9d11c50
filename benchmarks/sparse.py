"""Pruned networks against the best dense form on this machine: ratios measured in one run, in turns, float32.

python benchmarks/sparse.py [--only mlp convnet resnet block threads roofline files] [--quick]

The networks of `mlp` are trained on MNIST, which a data root must hold; other masks are random: the time of a sparse
layer depends on how many weights are left, hardly on which. Forms are timed in turns, as `nucleate.accelerate` does.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import nucleate.compact.choose as choose
from nucleate.compact import native
from nucleate.compact.choice import Choice
from nucleate.compact.choose import Accelerated, measure
from nucleate.compact.files import save_sparse
from nucleate.compact.fold import folded
from nucleate.compact.plan import Plan
from nucleate.compact.shrink import shrink
from nucleate.data import load
from nucleate.machine.matmul import fast_matmul, medium_keeps_float32
from nucleate.machine.tuning import Tuning
from nucleate.models import build
from nucleate.models.resnet import ResNet
from nucleate.probes.macs import layer_macs, remaining_macs
from nucleate.pruning.masks import Masks
from nucleate.pruning.prune import prune as decide
from nucleate.spec import DataSpec, ModelSpec, TrainSpec
from nucleate.training.held import HeldOut
from nucleate.training.steps import StepTraining


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
    return [
        judged(prune(net, density, shape, skip=skip), x, f"{shape} {density:.0%}", shape, target, skip)
        for density, shape, target in cases
    ]


def judged(
    pruned: nn.Module, x: Tensor, case: str, shape: str, target: float | None, skip: tuple[str, ...]
) -> tuple[str, dict[str, float], str, float | None]:
    """A row of a table: one native call of a pruned network against all its dense forms."""
    graph = folded(pruned)
    plan = Plan(graph, x, {name: "block" if name in skip else shape for name, _ in graph.named_modules()})
    assert torch.allclose(plan(x), pruned(x), atol=1e-3)
    seconds = measure({**dense_forms(pruned, x), "plan": partial(plan, x)})
    return f"{case}, batch {len(x)}", seconds, "plan", target


def mlp(quick: bool) -> None:
    """784-1024-1024-10 trained on MNIST, pruned once by magnitude and trained on, the classifier dense."""
    try:
        data = load(DataSpec(name="mnist", train_size=1000 if quick else None), None)
    except ValueError as error:
        print(f"\nmlp: skipped, {error}")
        return
    width, first, second = (64, 10, 1) if quick else (1024, 5, 20)
    before = TrainSpec(optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="cosine", epochs=first)
    after = replace(before, lr=3e-3, epochs=second, sparse=True)
    tuning = Tuning(threads=1, fused=True, sparse_below=1.0)
    inputs, labels, tests = data.train_inputs.flatten(1), data.train_labels, data.test_inputs.flatten(1)

    def train_on(net: nn.Module, masks: Masks | None) -> float:
        """Train in place; returns the test accuracy."""
        spec = before if masks is None else after
        training = StepTraining(net, inputs, labels, 10, spec, tuning, masks=masks)
        with torch.enable_grad():
            training.run(training.horizon)
        return float((training.logits(HeldOut(tests)).argmax(1) == data.test_labels).double().mean())

    net = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    dense, rows = train_on(net, None), []
    for density, shape, targets in (
        (0.1, "single", (3.2, 1.5)),
        (0.05, "single", (6.0, 3.0)),
        (0.1, "block", (6.5, None)),
        (0.05, "block", (11.0, None)),
    ):
        pruned = copy.deepcopy(net)
        kind = "weight" if shape == "single" else "block:4x1"
        masks = decide(pruned, "magnitude", density, shape=kind).masks
        masks.apply(pruned)
        accuracy = train_on(pruned, masks)
        print(
            f"{shape} {density:.0%}: test accuracy {accuracy:.2%}, dense {dense:.2%}, after {second} and {first} epochs"
            f" (asked: within 0.5 points: {'met' if accuracy >= dense - 0.005 else 'MISSED'})",
            flush=True,
        )
        for batch, target in zip((64, 1), targets, strict=True):
            x = tests[:batch].contiguous()
            rows.append(judged(pruned.eval(), x, f"{shape} {density:.0%}", shape, target, ("4",)))
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
    """ResNet-20 (He et al. 2016): three stages of three blocks; stem, classifier and shortcuts dense."""
    width = 4 if quick else 16
    spec = ModelSpec(name="resnet", width=width, depth=1 if quick else 3, batchnorm=True)
    net = build(spec, (3, 32, 32), 10, generator=Generator().manual_seed(0)).eval()
    assert isinstance(net, ResNet)
    net.stages, net.classifier = net.stages[:3], nn.Linear(4 * width, 10)
    skip = ("stem.conv", "classifier", *(n for n, _ in net.named_modules() if "shortcut" in n))
    rows, floors = [], []
    for batch in (16, 1):
        x = torch.randn(batch, 3, 32, 32)
        rows += compare(net, x, [(0.1, "single", None), (0.1, "block", None)], skip)
        pruned = prune(net, 0.1, "single", skip=skip)
        kept = {name: float((w != 0).double().mean()) for name, w in pruned.named_parameters()}
        left = remaining_macs(layer_macs(pruned, x[:1]), kept)
        floors.append(f"{2e3 * left * batch / product_rate(quick):.2f} ms at batch {batch}")
    table(f"ResNet-20, {width}-{2 * width}-{4 * width}, 32 x 32", rows)
    print(f"\nFloor, the multiplications left at the rate of a dense product: {', '.join(floors)}.")


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
    peak = product_rate(quick)
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


def product_rate(quick: bool) -> float:
    """Operations a second of a square product, the best of twenty."""
    size = 256 if quick else 1024
    a = torch.randn(size, size)
    with fast_matmul():
        return 2 * size**3 / min(_once(lambda: a @ a) for _ in range(20))


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


SECTIONS = {f.__name__: f for f in (files, mlp, block, threads, roofline, convnet, resnet)}


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
