"""The native passes over features against float64, and against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nucleate.geometry import native
from nucleate.geometry.collapse import collapse
from nucleate.machine.extension import DISABLE

# Points, dimensions, classes, columns: around the sizes of groups, spans, tiles and lanes.
SHAPES = [
    *((1, 1, 1, 1), (5, 3, 2, 2), (67, 255, 3, 9), (130, 257, 4, 20)),
    *((200, 1024, 10, 24), (64, 700, 5, 64), (33, 512, 3, 40), (3, 9, 2, 0)),
]


def points(n: int, d: int, classes: int, *, gap: int = 0) -> tuple[Tensor, Tensor, torch.Generator]:
    """Features whose rows lie `gap` floats apart, labels, and the generator."""
    g = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d + gap, generator=g)[:, :d] + 5
    return x, torch.randint(classes, (n,), generator=g), g


@pytest.fixture(autouse=True)
def _built() -> None:
    if not native.takes(torch.zeros(1, 1)):
        pytest.skip("the native passes are not built or are switched off")


@pytest.mark.parametrize(("n", "d", "classes", "k"), SHAPES)
@pytest.mark.parametrize("gap", [0, 3])
def test_sums_and_residuals_are_those_of_float64(n: int, d: int, classes: int, k: int, gap: int) -> None:
    x, y, g = points(n, d, classes, gap=gap)
    means, rows = torch.randn(classes, d, generator=g) + 5, torch.randn(classes, d, generator=g)
    total, square, count = torch.ones(classes, d).double(), torch.ones(classes).double(), torch.ones(classes).double()
    native.class_sums(x, y, total, square, count)
    member = torch.nn.functional.one_hot(y, classes).double()
    torch.testing.assert_close(total - 1, member.T @ x.double(), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(square - 1, member.T @ x.double().square().sum(1), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(count - 1, member.sum(0))

    columns = native.padded(torch.randn(d, k, generator=g)) if k else None
    r, length, slack = torch.empty(n, d), torch.empty(n), torch.empty(n).double()
    out = native.residuals(x, y, means, rows=rows, columns=columns, residual=r, length=length, slack=slack)
    exact = (x - means[y]).double()
    assert torch.equal(r.double(), exact)
    torch.testing.assert_close(length.double(), exact.norm(dim=1), rtol=1e-6, atol=0)
    scale = exact.norm(dim=1)
    assert bool(((slack - (exact * rows[y]).sum(1)).abs() <= 1e-6 * scale * rows[y].norm(dim=1)).all())
    if columns is not None and out is not None:
        error = (out.double() - exact @ columns.double()).abs()
        assert bool((error <= 2e-6 * scale[:, None] * columns.norm(dim=0)).all())


def test_threads_change_no_bit_of_a_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, g = points(130, 100, 3)
    columns, length = native.padded(torch.randn(100, 5, generator=g)), torch.empty(130)
    one = native.residuals(x, y, torch.zeros(3, 100), columns=columns, length=length)
    monkeypatch.setattr(native, "WORTH", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    again = torch.empty(130)
    three = native.residuals(x, y, torch.zeros(3, 100), columns=columns, length=again)
    assert one is not None
    assert three is not None
    assert torch.equal(one, three)
    assert torch.equal(length, again)


def test_the_measures_are_those_of_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, g = points(500, 40, 6)
    weight = torch.randn(6, 40, generator=g)
    ours = collapse(x, y, weight=weight)
    monkeypatch.setenv(DISABLE, "1")
    assert not native.takes(x)
    plain = collapse(x, y, weight=weight)
    for name in ("nc1", "nc1_cdnv", "nc2_equinorm", "nc3", "nc4", "ncc_accuracy", "boundary_spread"):
        assert getattr(ours, name) == pytest.approx(getattr(plain, name), rel=1e-5), name


@pytest.mark.parametrize("classes", [6, 40])
def test_a_transposed_classifier_measures_the_same(classes: int) -> None:
    x, y, g = points(400, 50, classes)
    weight = torch.randn(classes, 50, generator=g)
    assert collapse(x, y, weight=weight.T.contiguous().T).asdict() == pytest.approx(
        collapse(x, y, weight=weight).asdict(), nan_ok=True
    )


def test_what_it_cannot_read_is_left_to_torch() -> None:
    x = torch.zeros(4, 6)
    assert not native.takes(x.double())
    assert not native.takes(x.T)
    assert native.takes(x[:, 1:4])
