"""The engine against the plain loop, in one run: replica-steps a second, and how far they are from the products alone.

    python benchmarks/engine.py [--quick] [--only NAME]

Plain loop: default `torch.optim.Adam`, float32, all cores as threads, `zero_grad, loss, backward, step` on shuffled
batches of tensors in memory: what code without an engine does. Engine: `nucleate.training.Stack`, tuned by self-test,
in one process for each core with one thread each, on replicas that `plan_stacks` puts into one stack. The two are run
by turns; the median of the rounds counts. Conv-2 (Frankle, Carbin 2019: 4.3 million weights, batch 60) is never
stacked: it is trained by `Training` with the self-test's choices. Floor: the float32 matrix products of the same steps
alone, on the same cores (a convolution's as one product of its patches, which are not counted); bfloat16 goes below it.
JAX, where installed: one `jit` of `lax.scan` over the epoch's steps, in the same processes.

A row is judged by its promised ratio, plain over engine; exit code 1 if one is missed. Conv-2's is stated for bfloat16,
which pays only where the processor multiplies it (`nucleate doctor`); elsewhere the row says so and is not judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucleate.machine.matmul import bf16_is_native
from nucleate.machine.selftest import self_test
from nucleate.machine.tuning import choose_tuning
from nucleate.spec import TrainSpec
from nucleate.training import Replica, Stack, Training
from nucleate.training.loop import batches
from nucleate.training.plan import plan_stacks

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, how many replicas are stacked in a process, and the promised ratio."""

    name: str
    sizes: tuple[int, ...]
    batch: int
    steps: int
    replicas: int
    promised: float

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """(rows, inputs, outputs) of the products of one step's forward pass."""
        if self.sizes:
            return [(self.batch, a, b) for a, b in zip(self.sizes, self.sizes[1:], strict=False)]
        places = self.batch * 32 * 32
        heads = [(self.batch, a, b) for a, b in ((16384, 256), (256, 256), (256, 10))]
        return [(places, 27, 64), (places, 576, 64), *heads]


CASES = [
    Case("64-20-10", (64, 20, 10), 100, 60, 64, 6.0),
    Case("64-100-10", (64, 100, 10), 100, 60, 32, 4.0),
    Case("LeNet-300-100", (784, 300, 100, 10), 60, 60, 1, 2.3),
    Case("Conv-2", (), 60, 8, 1, 2.2),
]


def network(case: Case) -> nn.Module:
    if not case.sizes:
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16384, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)),
        )
    layers: list[nn.Module] = []
    for a, b in zip(case.sizes, case.sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(case: Case) -> tuple[Tensor, Tensor]:
    points = case.batch * case.steps
    shape = (case.sizes[0],) if case.sizes else (3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(points, *shape, generator=generator), torch.randint(0, 10, (points,), generator=generator)


def plain_epochs(case: Case) -> Iterator[None]:
    """An endless plain training, one epoch at a time."""
    model, (inputs, labels) = network(case), data(case)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.set_num_threads(CORES)
    while True:
        for index in torch.randperm(len(inputs)).split(case.batch):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[index]), labels[index]).backward()
            optimizer.step()
        yield


def engine_epochs(case: Case) -> Iterator[None]:
    """An endless training of the case's replicas on one thread."""
    inputs, labels = data(case)
    spec = TrainSpec(
        optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant", batch_size=case.batch, epochs=10**6
    )
    tuning = choose_tuning(precision="auto", threads=1, convolutional=not case.sizes, device="cpu")
    if not case.sizes:
        training = Training(network(case), inputs, labels, 10, spec, tuning)
        while True:
            training._run_epoch()
            yield
    made = [Replica(model=network(case), labels=labels, spec=spec, seed=seed) for seed in range(case.replicas)]
    assert plan_stacks(made) == [list(range(case.replicas))], "the package would not train these as one stack"
    epochs = iter(Stack(made, inputs, 10, tuning))
    while True:
        next(epochs)
        yield


def floor_epochs(case: Case) -> Iterator[None]:
    """The products of the same steps, one thread; of one replica, times their number."""
    torch.set_num_threads(1)
    made = [(torch.ones(n, a), torch.ones(b, a), torch.ones(n, b)) for n, a, b in case.products]
    while True:
        for _ in range(case.steps * case.replicas):
            for i, (x, w, d) in enumerate(made):
                _ = x @ w.T
                _ = d.T @ x
                if i:
                    _ = d @ w
        yield


def jax_epochs(case: Case) -> Iterator[None]:
    """The same replicas by JAX: one compiled scan over the epoch, vmapped over replicas."""
    import jax
    import jax.numpy as jnp

    inputs, labels = (jnp.asarray(x.numpy()) for x in data(case))
    orders = [torch.cat(batches(len(inputs), case.batch, seed=s, epoch=0)) for s in range(case.replicas)]
    index = jnp.asarray(torch.stack(orders).numpy()).reshape(case.replicas, case.steps, case.batch)
    weights = [
        (jax.random.normal(jax.random.key(i), (case.replicas, a, b)) * (2 / a) ** 0.5, jnp.zeros((case.replicas, b)))
        for i, (a, b) in enumerate(zip(case.sizes, case.sizes[1:], strict=False))
    ]

    def loss(p: Any, x: Any, y: Any) -> Any:
        for i, (w, b) in enumerate(p):
            x = x @ w + b
            x = jax.nn.relu(x) if i < len(p) - 1 else x
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

    def step(state: Any, i: Any) -> Any:
        p, m, v, t = state
        g = jax.grad(loss)(p, inputs[i], labels[i])
        t = t + 1
        m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, v, g)
        p = jax.tree.map(lambda a, b, c: a - 1e-3 * (b / (1 - 0.9**t)) / (jnp.sqrt(c / (1 - 0.999**t)) + 1e-8), p, m, v)
        return (p, m, v, t), None

    run = jax.jit(jax.vmap(lambda state, order: jax.lax.scan(step, state, order)[0]))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, zeros, jnp.zeros(case.replicas))
    while True:
        state = jax.block_until_ready(run(state, index))
        yield


KINDS: dict[str, Callable[[Case], Iterator[None]]] = {
    "plain": plain_epochs,
    "engine": engine_epochs,
    "floor": floor_epochs,
    "jax": jax_epochs,
}


def serve(kind: str, case: Case, pipe: Any) -> None:
    """A worker: runs an epoch whenever it is told to and answers with its time and its own processor time."""
    if kind != "plain":
        torch.set_num_threads(1)
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    epochs = KINDS[kind](case)
    next(epochs)
    next(epochs)
    pipe.send(None)
    while pipe.recv():
        wall, own = time.perf_counter(), time.process_time()
        next(epochs)
        pipe.send((time.perf_counter() - wall, time.process_time() - own))


def measure(case: Case, rounds: int) -> dict[str, tuple[float, float]]:
    """Kind -> seconds of a replica-step, by the clock with all cores and of one core: medians of rounds by turns."""
    kinds = ["plain", "engine", "floor"]
    if case.sizes and importlib.util.find_spec("jax") is not None:
        kinds.append("jax")
    context = multiprocessing.get_context("spawn")
    workers: dict[str, list[tuple[Any, Any]]] = {}
    for kind in kinds:
        workers[kind] = []
        for _ in range(1 if kind == "plain" else CORES):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(kind, case, there), daemon=True)
            process.start()
            workers[kind].append((here, process))
    # They begin side by side, for most of that is importing torch.
    for pipe, _ in (worker for group in workers.values() for worker in group):
        pipe.recv()
    seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, group in workers.items():
            for pipe, _ in group:
                pipe.send(True)
            answers = [pipe.recv() for pipe, _ in group]
            trained = case.steps * (1 if kind == "plain" else case.replicas)
            wall = max(a[0] for a in answers) / (trained * len(group))
            seen[kind].append((wall, statistics.mean(a[1] for a in answers) / trained))
    for group in workers.values():
        for pipe, process in group:
            pipe.send(False)
            process.join()
    return {
        kind: (statistics.median(w for w, _ in values), statistics.median(c for _, c in values))
        for kind, values in seen.items()
    }


def row(case: Case, rounds: int) -> tuple[str, bool]:
    """A line of the table, and whether the promise is kept."""
    found = measure(case, rounds)
    plain, engine = found["plain"], found["engine"]
    judged = bool(case.sizes) or bf16_is_native()
    ratio = plain[0] / engine[0]
    cells = [
        case.name,
        f"{1 / plain[0]:,.0f}",
        f"{1 / engine[0]:,.0f} ({CORES} x {case.replicas})",
        f"{ratio:.2f}",
        f"{plain[1] / engine[1]:.2f}",
        f"{engine[1] / found['floor'][1]:.2f}",
        f"{engine[1] / found['jax'][1]:.2f}" if "jax" in found else "-",
        f"{case.promised:g}: {'yes' if ratio >= case.promised else 'NO'}" if judged else "no bf16 unit",
    ]
    return "| " + " | ".join(cells) + " |", not judged or ratio >= case.promised


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 1 if a promised ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds: a look, not a verdict")
    parser.add_argument("--only", help="one case by name")
    args = parser.parse_args(argv)
    test = self_test()
    print(f"{test.name}, {CORES} cores, torch {torch.__version__}; ratios above 1: the engine is faster\n")
    print("| network | plain, steps/s | engine, replica-steps/s | ratio | ratio in core time | ", end="")
    print("core time over floor | over JAX | promised |")
    print("|---|---|---|---|---|---|---|---|")
    met = True
    for case in CASES:
        if args.only in (None, case.name):
            line, fine = row(case, 3 if args.quick else 7)
            print(line, flush=True)
            met &= fine
    return 0 if met or args.quick else 1


if __name__ == "__main__":
    raise SystemExit(main())
