from __future__ import annotations

import math

import pytest
import torch

from nucleate.geometry.similarity import BatchedCKA, cka, cka_chance
from nucleate.geometry.simplex import simplex_etf


def rand(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic1(x: torch.Tensor, y: torch.Tensor) -> float:
    """The textbook form, term by term."""
    k, m = (x @ x.T).fill_diagonal_(0), (y @ y.T).fill_diagonal_(0)
    b = len(x)
    total = (k * m.T).sum() + k.sum() * m.sum() / ((b - 1) * (b - 2)) - 2 / (b - 2) * (k @ m).sum()
    return float(total / (b * (b - 3)))


@pytest.mark.parametrize(("n", "p", "q"), [(50, 8, 12), (20, 60, 5), (20, 40, 70)])
def test_linear_cka_is_its_definition_and_sees_no_rotation_scale_or_shift(n, p, q):
    x, y = rand(n, p), rand(n, q, 1)
    a, b = x - x.mean(0), y - y.mean(0)
    direct = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert cka(x, y) == pytest.approx(float(direct), rel=1e-10)
    turn = torch.linalg.qr(rand(p, p, 2)).Q
    assert cka(x, -3 * x @ turn + 5) == pytest.approx(1)
    assert cka(x * 1e-160, y * 1e160) == pytest.approx(float(direct), rel=1e-10)


def test_chance_is_not_zero_for_linear_and_zero_for_unbiased_cka():
    values = [cka(rand(200, 300, s), rand(200, 500, s + 50)) for s in range(3)]
    assert sum(values) / 3 == pytest.approx(cka_chance(200, 300, 500), abs=0.01)
    batched = BatchedCKA(["x", "y"])
    for s in range(10):
        batched.update({"x": rand(64, 300, s), "y": rand(64, 500, s + 50)})
    assert abs(float(batched.compute()[0, 1])) < 0.02


def test_two_collapsed_layers_read_one():
    labels = torch.arange(40) % 5
    x, y = (simplex_etf(5, d, generator=torch.Generator().manual_seed(d))[labels] for d in (7, 30))
    assert cka(x, y) == pytest.approx(1, abs=1e-6)


def test_batched_equals_the_pairwise_textbook_form():
    layers = {"a": 3, "b": 6, "c": 4}
    batched = BatchedCKA(list(layers))
    total = {(p, q): 0.0 for p in layers for q in layers}
    for batch in range(5):
        features = {name: rand(8 + batch, d, 10 * batch + d) + batch for name, d in layers.items()}
        features["c"] = features["c"] + features["a"].sum(1, keepdim=True)
        batched.update(features)
        for p, q in total:
            total[p, q] += hsic1(features[p], features[q])
    result = batched.compute()
    for i, p in enumerate(layers):
        for j, q in enumerate(layers):
            expected = total[p, q] / math.sqrt(total[p, p] * total[q, q])
            assert float(result[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(result.diagonal(), torch.ones(3, dtype=torch.float64))


def test_two_networks_and_merged_shards_equal_the_whole():
    whole, left, right = (BatchedCKA(["a"], ["u", "v"]) for _ in range(3))
    for s in range(4):
        x, y = {"a": rand(6, 3, s)}, {"u": rand(6, 2, s + 9), "v": 2 * rand(6, 3, s)}
        whole.update(x, y)
        (left if s % 2 else right).update(x, y)
    left.merge(right)
    torch.testing.assert_close(whole.compute(), left.compute())
    assert float(whole.compute()[0, 1]) == pytest.approx(1)


def test_one_gram_for_each_layer_and_batch(monkeypatch):
    calls = 0
    inner = BatchedCKA.__dict__["_centred"]

    def counted(self, features, names):
        nonlocal calls
        calls += len(names)
        return inner(self, features, names)

    monkeypatch.setattr(BatchedCKA, "_centred", counted)
    batched = BatchedCKA([str(i) for i in range(7)])
    batched.update({str(i): rand(8, 3, i) for i in range(7)})
    assert calls == 7


def test_a_constant_layer_is_nan_with_its_name():
    batched = BatchedCKA(["dead", "live"])
    batched.update({"dead": torch.full((5, 3), 0.1), "live": rand(5, 3)})
    assert torch.isnan(batched.compute()[0]).all()
    assert float(batched.compute()[1, 1]) == pytest.approx(1)
    assert list(batched.reasons) == ["dead"] and "'dead'" in batched.reasons["dead"]
    assert math.isnan(cka(torch.full((5, 3), 0.1), rand(5, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BatchedCKA(["a"]).update({"a": rand(3, 2)}), "at least 4 points, not 3"),
        (
            lambda: BatchedCKA(["a", "b"]).update({"a": rand(5, 2), "c": rand(5, 2)}),
            r"missing \['b'\], unknown \['c'\]",
        ),
        (lambda: BatchedCKA(["a", "b"]).update({"a": rand(5, 2), "b": rand(6, 2)}), "same batch"),
        (lambda: BatchedCKA(["a"]).update({"a": rand(5, 2) / 0}), "layer 'a'"),
        (lambda: BatchedCKA(["a"]).update({"a": rand(5, 2)}, {"a": rand(5, 2)}), "others="),
        (lambda: BatchedCKA(["a"], ["b"]).update({"a": rand(5, 2)}, {"b": rand(6, 2)}), "same batch"),
        (lambda: BatchedCKA(["a", "a"]), "distinct"),
        (lambda: BatchedCKA([]), "at least one"),
        (lambda: BatchedCKA(["a"]).compute(), "update first"),
        (lambda: BatchedCKA(["a"]).merge(BatchedCKA(["b"])), "same layers"),
        (lambda: cka(rand(5, 2), rand(6, 2)), "same points"),
        (lambda: cka(rand(1, 2), rand(1, 2)), "two points"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
