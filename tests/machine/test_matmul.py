from __future__ import annotations

import pytest
import torch

from nucleate.machine import matmul


def test_the_flag_is_restored_even_after_an_error():
    before = torch.get_float32_matmul_precision()
    for setting in ("highest", "high"):
        torch.set_float32_matmul_precision(setting)
        try:
            with pytest.raises(RuntimeError), matmul.fast_matmul():
                raise RuntimeError
            assert torch.get_float32_matmul_precision() == setting
        finally:
            torch.set_float32_matmul_precision(before)


def test_a_route_that_loses_digits_is_not_taken(monkeypatch):
    monkeypatch.setattr(matmul, "relative_error", lambda device, precision: 3e-3)
    matmul.medium_keeps_float32.cache_clear()
    try:
        before = torch.get_float32_matmul_precision()
        with matmul.fast_matmul() as route:
            assert route == before == torch.get_float32_matmul_precision()
    finally:
        matmul.medium_keeps_float32.cache_clear()


@pytest.mark.parametrize(("exact", "faster"), [(True, False), (False, True), (True, True)])
def test_a_route_is_taken_where_it_is_exact_and_faster(monkeypatch, exact, faster):
    monkeypatch.setattr(matmul, "medium_keeps_float32", lambda device: exact)
    monkeypatch.setattr(matmul, "medium_is_faster", lambda device: faster)
    before = torch.get_float32_matmul_precision()
    with matmul.fast_matmul() as route:
        assert route == torch.get_float32_matmul_precision() == ("medium" if exact and faster else before)
    assert torch.get_float32_matmul_precision() == before


def test_products_inside_keep_float32(monkeypatch):
    g = torch.Generator().manual_seed(5)
    a, b = torch.randn(300, 700, generator=g), torch.randn(700, 30, generator=g)
    with matmul.fast_matmul():
        got = a @ b
    exact = a.double() @ b.double()
    assert torch.linalg.matrix_norm(got.double() - exact) < matmul.TOLERANCE * torch.linalg.matrix_norm(exact)


def test_the_self_test_runs_once_and_leaves_the_generator_alone(monkeypatch):
    calls = []
    real = matmul.relative_error
    monkeypatch.setattr(matmul, "relative_error", lambda *a: calls.append(a) or real(*a))
    matmul.medium_keeps_float32.cache_clear()
    state = torch.get_rng_state()
    for _ in range(3):
        with matmul.fast_matmul():
            pass
    assert calls == [("cpu", "medium")]
    assert torch.equal(torch.get_rng_state(), state)
    matmul.medium_keeps_float32.cache_clear()


def test_bfloat16_products_would_be_caught():
    g = torch.Generator().manual_seed(5)
    a, b = torch.randn(100, 200, generator=g), torch.randn(200, 100, generator=g)
    exact = a.double() @ b.double()
    error = torch.linalg.matrix_norm((a.bfloat16() @ b.bfloat16()).double() - exact) / torch.linalg.matrix_norm(exact)
    assert error > 100 * matmul.TOLERANCE
