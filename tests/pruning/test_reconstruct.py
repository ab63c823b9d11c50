"""SparseGPT against direct optimal-brain-surgeon solves, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nucleate.models.transformer import Transformer
from nucleate.pruning.layout import Layout
from nucleate.pruning.reconstruct import InputGram, reconstruct, sparsegpt
from nucleate.pruning.select import select


def inputs(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, dtype=torch.float64, generator=generator)
    return torch.randn(n, d, dtype=torch.float64, generator=generator) @ mix


def weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def error(w: torch.Tensor, new: torch.Tensor, x: torch.Tensor) -> float:
    return float(((w - new) @ x.T).square().sum())


def test_repair_is_the_direct_solve_column_by_column() -> None:
    x, w = inputs(200, 8), weights(3, 8)
    h = 2 * x.T @ x / len(x)
    done = sparsegpt(w, h, 0.5, damping=0.0)
    # Left to right: a pruned column is set to zero and those after it are re-solved, given all before it.
    for row in range(3):
        now = w[row].clone()
        for j in range(8):
            if done.mask[row, j] == 0:
                inverse = torch.linalg.inv(h[j:, j:])
                now[j:] -= now[j] / inverse[0, 0] * inverse[:, 0]
        torch.testing.assert_close(done.weight[row], now * done.mask[row], rtol=1e-8, atol=1e-10)


def test_the_score_is_the_error_of_removing_a_weight_with_all_after_it_free() -> None:
    x, w = inputs(200, 6), weights(1, 6)
    h = 2 * x.T @ x / len(x)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    scores = w.square() / upper.diagonal().square()
    for j in range(6):
        inverse = torch.linalg.inv(h[j:, j:])
        change = torch.zeros(6, dtype=torch.float64)
        change[j:] = -w[0, j] / inverse[0, 0] * inverse[:, 0]
        assert float(change @ h @ change) == pytest.approx(float(scores[0, j]))
    kept = sparsegpt(w, h, 0.5, damping=0.0).mask
    assert torch.equal(kept, select({"w": scores}, 0.5)["w"])


def test_without_correlations_it_is_magnitude_and_repairs_nothing() -> None:
    w = weights(5, 12)
    done = sparsegpt(w, 3.7 * torch.eye(12, dtype=torch.float64), 0.4)
    assert torch.equal(done.mask, select({"w": w.abs()}, 0.4)["w"])
    torch.testing.assert_close(done.weight, w * done.mask, rtol=1e-12, atol=0)
    block = sparsegpt(w, torch.eye(12, dtype=torch.float64), 0.5, block=4)
    for i in range(0, 12, 4):
        assert torch.equal(block.mask[:, i : i + 4], select({"w": w[:, i : i + 4].abs()}, 0.5)["w"])


def test_it_beats_magnitude_and_the_same_mask_unrepaired() -> None:
    # Correlations as between neighbouring features; the order of columns matters when they are near singular.
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(500, 5, dtype=torch.float64, generator=generator)
    spread = torch.randn(5, 40, dtype=torch.float64, generator=generator)
    x, w = shared @ spread + torch.randn(500, 40, dtype=torch.float64, generator=generator), weights(20, 40)
    h = 2 * x.T @ x / len(x)
    done = sparsegpt(w, h, 0.5)
    magnitude = w * select({"w": w.abs()}, 0.5)["w"]
    assert error(w, done.weight, x) < error(w, w * done.mask, x)
    assert error(w, done.weight, x) < error(w, magnitude, x)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_patterns_hold_in_every_window(n: int, m: int) -> None:
    x, w = inputs(300, 16), weights(6, 16)
    done = sparsegpt(w, 2 * x.T @ x, n / m, shape=f"{n}:{m}", block=8)
    assert bool((done.mask.view(6, -1, m).sum(2) == n).all())
    assert bool((done.weight[done.mask == 0] == 0).all())
    identity = sparsegpt(w, torch.eye(16, dtype=torch.float64), n / m, shape=f"{n}:{m}", block=8)
    order = w.abs().view(6, -1, m).sort(dim=2, descending=True).indices[..., :n]
    assert torch.equal(
        identity.mask.view(6, -1, m), torch.zeros(6, 16 // m, m, dtype=torch.uint8).scatter_(2, order, 1)
    )


@pytest.mark.parametrize("density", [0.01, 0.33, 0.5, 0.999, 1.0])
def test_counts_are_exact_over_blocks_of_any_size(density: float) -> None:
    x, w = inputs(100, 37), weights(7, 37)
    for block in (5, 16, 128):
        done = sparsegpt(w, x.T @ x, density, block=block)
        assert int(done.mask.sum()) == round(density * 7 * 37)
    whole = sparsegpt(w, x.T @ x, 1.0)
    assert torch.equal(whole.weight, w)


def test_singular_hessians_and_dead_inputs_are_said() -> None:
    x, w = inputs(5, 12), weights(4, 12)
    x[:, 3] = 0
    done = sparsegpt(w, x.T @ x, 0.5, damping=0.0)
    assert done.damping > 0 and done.dead == 1
    assert bool((done.weight[:, 3] == 0).all()) and bool(torch.isfinite(done.weight).all())
    with pytest.raises(ValueError, match="finite"):
        sparsegpt(w, torch.full((12, 12), float("nan"), dtype=torch.float64), 0.5)
    for shape, density, message in (
        ("2:4", 0.4, "density must be"),
        ("2:5", 0.4, "do not divide"),
        ("unit", 0.5, "N:M"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsegpt(w, x.T @ x, density, shape=shape)


def test_earlier_masks_stay() -> None:
    x, w = inputs(100, 16), weights(4, 16)
    first = sparsegpt(w, x.T @ x, 0.5)
    second = sparsegpt(first.weight, x.T @ x, 0.25, live=first.mask)
    assert bool((second.mask <= first.mask).all()) and int(second.mask.sum()) == 16
    assert bool((second.weight[first.mask == 0] == 0).all())


def test_grams_of_convolutions_and_padding_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect")
    x = torch.randn(2, 3, 8, 8, generator=generator)
    gram = InputGram(conv, Layout("conv", tuple(conv.weight.shape)))
    gram.add(x)
    # The squared output of a filter without bias is w^T G w.
    with torch.no_grad():
        out = conv(x) - conv.bias[:, None, None]
        w = conv.weight.flatten(1)
        torch.testing.assert_close(
            (w @ gram.hessian * w).sum(1), 2 * out.square().mean((0, 2, 3)), rtol=1e-4, atol=1e-5
        )
    linear = InputGram(nn.Linear(4, 2), Layout("linear", (2, 4)))
    tokens, mask = torch.randn(2, 5, 4, generator=generator), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    linear.add(tokens, mask)
    torch.testing.assert_close(linear.hessian, 2 * tokens[mask].T @ tokens[mask] / 7)
    with pytest.raises(ValueError, match="ungrouped"):
        InputGram(nn.Conv2d(4, 4, 3, groups=4), Layout("conv", (4, 1, 3, 3), groups=4))


def test_layers_are_repaired_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(16, 16)
            self.first = nn.Linear(12, 16)
            self.head = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.second(torch.relu(self.first(x)))))

    model = Backwards()
    for p in model.parameters():
        p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    dense = copy.deepcopy(model)
    model.train()
    done = reconstruct(model, [(x[:40], None), (x[40:], None)], 0.5)
    assert model.training and done.masks.densities == {"second.weight": 0.5, "first.weight": 0.5}
    first = sparsegpt(dense.first.weight.detach(), 2 * x.T @ x / 64, 0.5)
    torch.testing.assert_close(model.first.weight.detach(), first.weight, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        h = torch.relu(model.first(x))
    second = sparsegpt(dense.second.weight.detach(), 2 * h.T @ h / 64, 0.5)
    torch.testing.assert_close(model.second.weight.detach(), second.weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="ungrouped"):
        reconstruct(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2)), [(x, None)], 0.5)


class Steps(nn.Module):
    """As many runs of `read` and `cell` as there are steps, one of `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.cell, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(len(x), 16)
        for step in x.unbind(1):
            h = torch.tanh(self.read(step) + self.cell(h))
        return self.last(torch.relu(self.head(h)))


def whole_passes(model: nn.Module, order: list[str], batches: list[tuple[torch.Tensor, None]]) -> None:
    """SparseGPT at 0.5 as it is told: every pass is the model's own, to its end."""
    for name in order:
        layer = model.get_submodule(name)
        gram = InputGram(layer, Layout("linear", tuple(layer.weight.shape)))
        handle = layer.register_forward_pre_hook(lambda _, args, gram=gram: gram.add(args[0]))
        with torch.no_grad():
            for x, _ in batches:
                model(x)
            layer.weight.copy_(sparsegpt(layer.weight.detach(), gram.hessian, 0.5).weight)
        handle.remove()


def test_passes_that_end_at_the_layer_change_no_bit_and_leave_nothing_behind() -> None:
    torch.manual_seed(0)
    attention = ("attention.query", "attention.key", "attention.value", "attention.out")
    cases: list[tuple[nn.Module, list[str], list[tuple[torch.Tensor, None]]]] = [
        (
            Transformer(8, 256, width=32, depth=2),
            [f"blocks.{block}.{name}" for block in range(2) for name in (*attention, "up", "down")],
            [(torch.randint(0, 256, (5, 8)), None) for _ in range(2)],
        ),
        # The first batch alone does not tell that two layers run more than once.
        (Steps(), ["read", "cell", "head"], [(torch.randn(20, steps, 12), None) for steps in (1, 3, 2)]),
    ]
    for model, order, batches in cases:
        expected = copy.deepcopy(model).eval()
        whole_passes(expected, order, batches)
        last = list(model.modules())[-1]
        ends: list[int] = []
        last.register_forward_pre_hook(lambda *_, ends=ends: ends.append(1))
        model.train()
        next(model.children()).eval()
        modes = [m.training for m in model.modules()]
        reconstruct(model, batches, 0.5, layers=order)
        for name, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        assert modes == [m.training for m in model.modules()]
        assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == [0] * (
            len(modes) - 1
        ) + [1]
        # One pass finds the order; of the others only those of layers that run again reach the end.
        assert len(ends) == len(batches) * (1 + sum(name in ("read", "cell") for name in order))


def test_a_model_that_catches_errors_does_not_catch_the_end_of_a_pass() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.last(self.second(self.first(x)))
            except Exception:
                return self.last(self.second(self.first(x.abs())))

    torch.manual_seed(0)
    model, batches = Careful(), [(torch.randn(30, 12), None)]
    expected = copy.deepcopy(model)
    whole_passes(expected, ["first", "second"], batches)
    reconstruct(model, batches, 0.5, layers=["first", "second"])
    assert torch.equal(model.first.weight, expected.first.weight)
    assert torch.equal(model.second.weight, expected.second.weight)
