from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleate.geometry.cells import Cells, activation_patterns, own_cell_share


@given(n=st.integers(1, 50), units=st.integers(1, 12), seed=st.integers(0, 999), cut=st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_counts_equal_a_comparison_of_all_pairs_and_shards_equal_the_whole(n, units, seed, cut):
    z = torch.randn(n, units, generator=torch.Generator().manual_seed(seed))
    on = z > 0
    same = (on[:, None] == on[None]).all(2).sum(1)
    assert own_cell_share(z) == pytest.approx(float((same == 1).double().mean()))
    left, right, whole = Cells(), Cells(), Cells()
    for cells, part in ((left, z[:cut]), (right, z[cut:]), (whole, z)):
        cells.update(part)
    left.merge(right)
    assert left.compute() == whole.compute()
    assert whole.compute().cells == len({tuple(row) for row in on.tolist()})
    assert whole.compute().largest == int(same.max())


def test_layers_are_one_pattern_and_maps_are_flattened():
    a, b = torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([[[True, False]], [[False, False]], [[False, False]]])
    assert activation_patterns([a, b]).shape == (3, 3)
    assert own_cell_share([a, b]) == 1.0
    assert own_cell_share(a) == pytest.approx(1 / 3)


def test_a_wide_random_layer_isolates_points_and_a_narrow_one_does_not():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 10, generator=g)
    shares = [own_cell_share(x @ torch.randn(10, width, generator=g)) for width in (2, 10, 100)]
    assert shares[0] < 0.05 < shares[1] < shares[2]
    assert shares[2] > 0.95


@pytest.mark.parametrize("units", [1, 31, 32, 33, 64, 65, 400])
def test_every_unit_tells_cells_apart(units):
    on = torch.cat([torch.zeros(2, units), torch.eye(units)]) > 0
    cells = Cells()
    cells.update(on)
    assert (cells.compute().cells, cells.compute().largest) == (units + 1, 2)
    assert own_cell_share(on) == pytest.approx(units / (units + 2))


def test_zero_is_off():
    assert activation_patterns(torch.tensor([[0.0, -0.0, 1e-45, -1.0]])).tolist() == [[False, False, True, False]]


def test_nothing_seen_is_nan():
    assert math.isnan(Cells().compute().own_share)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: own_cell_share([]), "no layer"),
        (lambda: own_cell_share(torch.tensor([[math.nan]])), "layer 0 holds NaN"),
        (lambda: own_cell_share([torch.zeros(3, 2), torch.zeros(4, 2)]), "layer 1 has shape"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batches_with_other_units_are_refused():
    cells, other = Cells(), Cells()
    cells.update(torch.ones(2, 3))
    with pytest.raises(ValueError, match="4 units"):
        cells.update(torch.ones(2, 4))
    other.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="cannot be merged"):
        cells.merge(other)
