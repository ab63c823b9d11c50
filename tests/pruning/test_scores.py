"""Every score against its closed form or a slow float64 twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import reference_pruning as ref
from nucleate.models import build
from nucleate.pruning.criteria import curvature
from nucleate.pruning.criteria.given import Given
from nucleate.pruning.criteria.weights import _ranks
from nucleate.pruning.prune import prune
from nucleate.pruning.scores import Scores, scores
from nucleate.pruning.select import select
from nucleate.spec import ModelSpec

ALL = ("output",)


class Twin:
    """A float64 tanh network, its data in two unequal batches, and the same in numpy."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).double()
        for p in self.model.parameters():
            p.data.normal_(generator=generator)
        x = torch.randn(14, 5, dtype=torch.float64, generator=generator)
        y = torch.randint(3, (14,), generator=generator)
        self.batches = [(x[:4], y[:4]), (x[4:], y[4:])]
        self.w = self.model[0].weight.detach().numpy(), self.model[2].weight.detach().numpy()
        self.x, self.y = x.numpy(), y.numpy()
        self.parts = [(a.numpy(), b.numpy()) for a, b in self.batches]

    def scores(self, method: str) -> list[np.ndarray]:
        return [s.numpy() for s in scores(self.model, method, self.batches, include=ALL).values()]

    def gradients(self, temperature: float = 1.0) -> list[tuple[np.ndarray, np.ndarray]]:
        return [ref.gradient(*self.w, x, y, temperature) for x, y in self.parts]

    def over_batches(self, function: object) -> list[np.ndarray]:
        """Mean over examples of a function of weight and batch gradient."""
        return [
            (4 * function(w, self.gradients()[0][i]) + 10 * function(w, self.gradients()[1][i])) / 14  # type: ignore[operator]
            for i, w in enumerate(self.w)
        ]


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def close(found: list[np.ndarray], want: list[np.ndarray], rtol: float = 1e-10) -> None:
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def test_snip_is_the_size_of_the_summed_gradient(twin: Twin) -> None:
    whole = ref.gradient(*twin.w, twin.x, twin.y)
    close(twin.scores("snip"), ref.both(lambda w, g: np.abs(w * g), twin.w, whole))
    close(twin.scores("movement"), ref.both(lambda w, g: -w * g, twin.w, whole))


def test_snip_by_batches_is_the_sum_of_sizes_and_differs(twin: Twin) -> None:
    close(twin.scores("snip_batches"), twin.over_batches(lambda w, g: np.abs(w * g)))
    assert all((a >= b - 1e-15).all() for a, b in zip(twin.scores("snip_batches"), twin.scores("snip"), strict=True))
    assert not np.allclose(twin.scores("snip_batches")[0], twin.scores("snip")[0])
    one = [twin.batches[0]]
    a = scores(twin.model, "snip", one, include=ALL)
    b = scores(twin.model, "snip_batches", one, include=ALL)
    close([s.numpy() for s in a.values()], [s.numpy() for s in b.values()])
    assert (a.record["mode"], b.record["mode"]) == ("eval", "train")


def test_snip_is_the_change_of_the_loss_with_the_mask(twin: Twin) -> None:
    found = twin.scores("snip")
    for layer, index in ((0, (1, 2)), (1, (2, 3))):
        e, values = 1e-6, []
        for sign in (1, -1):
            w = [w.copy() for w in twin.w]
            w[layer][index] *= 1 + sign * e
            values.append(ref.loss(*w, twin.x, twin.y))
        assert found[layer][index] == pytest.approx(abs(values[0] - values[1]) / (2 * e), rel=1e-6)


def test_taylor_averages_over_batches(twin: Twin) -> None:
    close(twin.scores("taylor"), twin.over_batches(lambda w, g: (w * g) ** 2))
    close(twin.scores("taylor_abs"), twin.over_batches(lambda w, g: np.abs(w * g)))
    close(twin.scores("taylor_unit"), twin.over_batches(lambda w, g: (w * g).sum(1) ** 2))


def test_grasp_is_the_weight_times_its_hessian_gradient_product(twin: Twin) -> None:
    whole = ref.gradient(*twin.w, twin.x, twin.y, 200)
    product = ref.hessian_product(*twin.w, twin.x, twin.y, whole, 200)
    want = ref.both(lambda w, h: w * h, twin.w, product)
    close(twin.scores("grasp"), want, 1e-5)
    close(twin.scores("grasp_abs"), [np.abs(s) for s in want], 1e-5)
    each = [
        ref.hessian_product(*twin.w, x, y, g, 200) for (x, y), g in zip(twin.parts, twin.gradients(200), strict=True)
    ]
    close(
        twin.scores("grasp_batches"), [w * (4 * each[0][i] + 10 * each[1][i]) / 14 for i, w in enumerate(twin.w)], 1e-5
    )


def test_grasp_keeps_what_the_norm_of_the_gradient_needs(twin: Twin) -> None:
    # Removing a weight changes |g|^2 / 2 by -w (H g) to first order; shrinking all by a little must lower it most
    # along weights of large positive score, which therefore stay.
    found = np.concatenate([s.flatten() for s in twin.scores("grasp")])
    change = []
    for layer in (0, 1):
        for index in np.ndindex(twin.w[layer].shape):
            norms = []
            for sign in (1, -1):
                w = [w.copy() for w in twin.w]
                w[layer][index] *= 1 + sign * 1e-5
                norms.append(sum((g**2).sum() for g in ref.gradient(*w, twin.x, twin.y, 200)) / 2)
            change.append((norms[0] - norms[1]) / 2e-5)
    np.testing.assert_allclose(found, change, rtol=1e-4, atol=1e-4 * np.abs(found).max())


def test_fisher_takes_examples_one_by_one(twin: Twin) -> None:
    squares = [0.0, 0.0]
    for i in range(14):
        for part, g in enumerate(ref.gradient(*twin.w, twin.x[i : i + 1], twin.y[i : i + 1])):
            squares[part] = squares[part] + g**2 / 14
    close(twin.scores("fisher"), [w**2 * s / 2 for w, s in zip(twin.w, squares, strict=True)])


def test_hutchinson_tends_to_the_hessian_diagonal(twin: Twin) -> None:
    want = ref.both(lambda w, h: w**2 * h / 2, twin.w, ref.hessian_diagonal(*twin.w, twin.x, twin.y))
    errors = []
    for probes in (20, 2000):

        def method(given: Given, probes: int = probes) -> dict[str, torch.Tensor]:
            return curvature.hutchinson(given, probes=probes)

        found = [s.numpy() for s in scores(twin.model, method, twin.batches, include=ALL).values()]
        errors.append(math.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(found, want, strict=True))))
    scale = math.sqrt(sum((b**2).sum() for b in want))
    assert errors[1] < 0.1 * scale
    assert 3 < errors[0] / errors[1] < 30  # the spread falls as one over the root: ten here


def test_hutchinson_is_exact_where_the_hessian_is_diagonal() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

    def squares(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (out[:, 0] - y).square().sum()

    found = scores(model, "hutchinson", [(x, torch.zeros(3, dtype=torch.float64))], squares)["weight"]
    h = 2 * torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(found, model.weight.detach().square() * h / 2)


def test_synflow_conserves_the_flow() -> None:
    model = nn.Sequential(
        nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    )
    found = scores(model, "synflow", [(torch.zeros(2, 5), None)], include=ALL)
    w = [m.weight.detach().double().abs() for m in model if isinstance(m, nn.Linear)]
    total = float((w[2] @ w[1] @ w[0]).sum())
    assert [float(s.sum()) for s in found.values()] == pytest.approx([total] * 3)
    # The score of a weight is all flow through it.
    into, out = w[0].sum(1), w[2].sum(0)
    torch.testing.assert_close(found["2.weight"], out[:, None] * w[1] * into)
    assert found.record["precision"] == "float64"


def test_path_counts_are_products_of_widths() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))
    for p in model.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    for m in (model[0], model[2], model[4]):
        m.bias.data.zero_()
    found = scores(model, "path_counts", [(torch.zeros(1, 5), None)], include=ALL)
    assert {float(s) for s in found["0.weight"].flatten()} == {6 * 3.0}
    assert {float(s) for s in found["2.weight"].flatten()} == {5 * 3.0}
    assert {float(s) for s in found["4.weight"].flatten()} == {5 * 7.0}


def test_synflow_on_a_residual_network_neither_under_nor_overflows() -> None:
    model = build(
        ModelSpec(name="resnet", width=8, depth=4, batchnorm=True),
        (3, 32, 32),
        10,
        generator=torch.Generator().manual_seed(0),
    )
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            # As after training: means of either sign that would cut signals off.
            m.running_mean.normal_(0, 3, generator=torch.Generator().manual_seed(1))
    for scale in (1e-3, 30.0):
        for p in model.parameters():
            if p.ndim == 4:
                p.data.mul_(scale / p.data.std() / 10)
        found = scores(model, "synflow", [(torch.zeros(1, 3, 32, 32), None)])
        assert all(bool((s > 0).all()) for s in found.values())


def test_lamp_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    for p in model.parameters():
        p.data = (torch.randn(p.shape, generator=generator) * 4).round() / 4  # with ties
    found = scores(model, "lamp")
    for name in ("0.weight", "2.weight"):
        w = model.get_parameter(name).detach().double().numpy()
        np.testing.assert_allclose(found[name].numpy(), ref.lamp(w), rtol=1e-12)
        assert float(found[name].max()) <= 1
    # Each layer's largest outranks all that is not: nothing empties while there are as many weights as layers.
    distinct = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    distinct[2].weight.data.mul_(1e-8)
    assert not select(scores(distinct, "lamp"), 2 / 50).emptied


def test_lamp_sums_from_the_large_end() -> None:
    w = torch.full((1, 100_000), 1e-4)
    w[0, 0] = 1e4
    model = nn.Sequential(nn.Linear(100_000, 1, bias=False))
    model[0].weight.data.copy_(w)
    found = scores(model, "lamp")["0.weight"]
    assert float(found[0, 0]) == 1.0
    assert float(found[0, 1]) == pytest.approx(1e-8 / (1e8 + 99_999 * 1e-8), rel=1e-6)


def test_fpgm_is_the_sum_of_distances_of_signed_filters() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3))
    model[0].weight.data[1] = -model[0].weight.data[0]
    found = scores(model, "fpgm")["0.weight"].numpy()
    rows = model[0].weight.detach().double().flatten(1).numpy()
    np.testing.assert_allclose(found, ref.fpgm(rows), rtol=1e-9)
    assert found[1] != pytest.approx(found[0])


def test_bn_scores_follow_their_formulas() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)
    )
    gamma, beta = torch.tensor([-2.0, 0.5, 0.0]), torch.tensor([0.3, -1.0, 0.7])
    model[1].weight.data.copy_(gamma)
    model[1].bias.data.copy_(beta)
    found = scores(model, "bn_scale")
    assert found["0.weight"].tolist() == [2.0, 0.5, 0.0]
    assert found.record["unscored"] == ["3.weight"]
    z = torch.randn(2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampled = [float((b + abs(g) * z).clamp_min(0).mean()) for g, b in zip(gamma.tolist(), beta.tolist(), strict=True)]
    assert scores(model, "expected_bn")["0.weight"].tolist() == pytest.approx(sampled, abs=3e-3)
    with pytest.raises(ValueError, match="not affine"):
        scores(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, affine=False)), "bn_scale")
    with pytest.raises(ValueError, match="followed by a batch normalisation"):
        scores(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), "bn_scale")


def family() -> tuple[nn.Sequential, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    w0, w = torch.tensor([[1.0, -2.0], [0.5, -0.25]]), torch.tensor([[3.0, 1.5], [-0.25, -0.5]])
    model[0].weight.data.copy_(w)
    return model, {"0.weight": w0}, w0, w


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ("large_final", [3.0, 1.5, 0.25, 0.5]),
        ("magnitude", [3.0, 1.5, 0.25, 0.5]),
        ("small_final", [-3.0, -1.5, -0.25, -0.5]),
        ("large_init", [1.0, 2.0, 0.5, 0.25]),
        ("small_init", [-1.0, -2.0, -0.5, -0.25]),
        ("magnitude_increase", [2.0, -0.5, -0.25, 0.25]),
        ("distance", [2.0, 3.5, 0.75, 0.25]),
        ("large_final_same_sign", [3.0, 0.0, 0.0, 0.5]),
        ("large_final_diff_sign", [0.0, 1.5, 0.25, 0.0]),
        ("magnitude_increase_same_sign", [2.0, 0.0, 0.0, 0.25]),
        ("magnitude_increase_diff_sign", [0.0, -0.5, -0.25, 0.0]),
        ("large_init_large_final", [2 / 3, 2 / 3, 0.0, 0.0]),
        ("small_init_small_final", [0.0, 0.0, 2 / 3, 2 / 3]),
    ],
)
def test_the_family_of_initial_and_final_weights(method: str, want: list[float]) -> None:
    model, initial, _, _ = family()
    assert scores(model, method, initial=initial)["0.weight"].flatten().tolist() == pytest.approx(want)


def test_large_init_large_final_keeps_what_lies_above_a_quantile_of_both() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20, bias=False))
    w0 = torch.randn(20, 30, generator=generator)
    model[0].weight.data.copy_(w0 + torch.randn(20, 30, generator=generator))
    found = select(scores(model, "large_init_large_final", initial={"0.weight": w0}), 0.3)["0.weight"].bool()
    a, b = _ranks(model[0].weight.detach().abs()), _ranks(w0.abs())
    quantile = float(torch.minimum(a, b)[found].min())
    # Two entries may lie exactly at the quantile, one in each ranking; the first of them fills the count.
    above, at_least = (a > quantile) & (b > quantile), (a >= quantile) & (b >= quantile)
    assert bool((above <= found).all()) and bool((found <= at_least).all()) and int(at_least.sum() - above.sum()) <= 2


def test_random_scores_belong_to_their_layer() -> None:
    small = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    large = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 2))
    a, b = scores(small, "random", seed=3), scores(large, "random", seed=3)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "4.weight" in b and "4.weight" not in a
    assert not torch.equal(a["0.weight"], scores(small, "random", seed=4)["0.weight"])


def test_erk_scores_give_erk_densities_under_one_threshold() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 128, 3), nn.Flatten(), nn.Linear(128, 256))
    found = select(scores(model, "erk", include=ALL, seed=1), 0.2).densities
    want = select(scores(model, "random", include=ALL), 0.2, scope="erk").densities
    for name, density in want.items():
        assert found[name] == pytest.approx(density, abs=0.03)


def test_signed_scores_never_let_pruned_weights_back(twin: Twin) -> None:
    masks = select(scores(twin.model, "random", include=ALL), 0.5)
    found = scores(twin.model, "grasp", twin.batches, include=ALL, masks=masks)
    assert any(bool((s < 0).any()) for s in found.values())
    assert select(found, 0.4).within(masks)


def test_scores_carry_what_they_came_from(twin: Twin) -> None:
    found = scores(twin.model, "snip", twin.batches)
    assert isinstance(found, Scores)
    assert found.record == {
        "method": "snip",
        "seed": 0,
        "mode": "eval",
        "precision": "float64",
        "examples": 14,
        "batches": 2,
    }


def test_synflow_in_rounds_empties_no_layer_where_one_round_does() -> None:
    def deep() -> nn.Sequential:
        model = nn.Sequential()
        for _ in range(6):
            model.extend([nn.Linear(20, 20, bias=False), nn.ReLU()])
        model.append(nn.Linear(20, 3, bias=False))
        for i, p in enumerate(model.parameters()):
            p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(i))
        return model

    batches = [(torch.zeros(1, 20), None)]
    model = deep()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="empties"):
        prune(model, "synflow", 0.01, batches=batches, include=ALL, rounds=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    done = prune(model, "synflow", 0.01, batches=batches, include=ALL)
    assert done.record["rounds"] == 100 and done.masks.kept == round(0.01 * (6 * 400 + 60)) and not done.masks.emptied
    # What is left is whole paths: every kept weight carries flow.
    found = scores(model, "synflow", batches, include=ALL, masks=done.masks)
    assert all(bool((s[done.masks[name] == 1] > 0).all()) for name, s in found.items())
