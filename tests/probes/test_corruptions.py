"""Corruptions against their closed forms, SciPy and what they must leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from nucleate.probes.corruptions import CORRUPTIONS, SEVERITIES, VALUEWISE, corrupt, corruption_accuracy


def images(n: int = 6, channels: int = 2, height: int = 20, width: int = 30) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def smooth() -> torch.Tensor:
    return torch.nn.functional.interpolate(images(height=4, width=5), (20, 30), mode="bilinear")


def grey(n: int = 4, side: int = 100, value: float = 0.5) -> torch.Tensor:
    return torch.full((n, 1, side, side), value)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind_stays_in_its_bounds_grows_and_repeats(kind: str) -> None:
    x = smooth() * 4 - 1
    before = x.clone()
    found = [corrupt(x, kind, s, bounds=(-1, 3)) for s in SEVERITIES]
    for y in found:
        assert y.shape == x.shape and y.dtype == x.dtype
        assert float(y.min()) >= -1 - 1e-6 and float(y.max()) <= 3 + 1e-6
    distances = [float((y - x).norm()) for y in found]
    assert distances == sorted(distances) and distances[0] > 0
    assert torch.equal(corrupt(x, kind, 3, bounds=(-1, 3)), found[2])
    # The same picture in other units is corrupted alike.
    torch.testing.assert_close(corrupt(smooth(), kind, 3) * 4 - 1, found[2], rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_strength_it_states(severity: int) -> None:
    # Quartiles, because the tails are clipped: of a normal law they lie 0.6745 std from the middle.
    low, middle, high = corrupt(grey(value=0), "gaussian", severity, bounds=(-5, 5)).quantile(
        torch.tensor([0.25, 0.5, 0.75])
    )
    assert float(high - low) == pytest.approx(2 * 0.6745 * 0.8 * severity, rel=0.03)
    assert float(middle) == pytest.approx(0, abs=0.02 * severity)
    photons = (60, 30, 15, 8, 4)[severity - 1]
    shot = corrupt(grey(value=0.2), "shot", severity)
    assert float(shot.mean()) == pytest.approx(0.2, rel=0.02)
    assert float(shot.var()) == pytest.approx(0.2 / photons, rel=0.05)
    hit = corrupt(grey(), "salt-and-pepper", severity)
    assert float((hit != 0.5).double().mean()) == pytest.approx(0.05 * severity, rel=0.05)
    assert float((hit == 1).double().mean()) == pytest.approx(0.025 * severity, rel=0.1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_keeps_each_mean_and_scales_the_spread(severity: int) -> None:
    x = images()
    y = corrupt(x, "contrast", severity)
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)))
    factor = (0.75, 0.5, 0.35, 0.2, 0.1)[severity - 1]
    torch.testing.assert_close(y.flatten(1).std(1), factor * x.flatten(1).std(1))


@pytest.mark.parametrize("severity", [1, 5])
def test_blur_is_scipys(severity: int) -> None:
    x = images().double()
    sigma = (0.02 * severity * 20, 0.02 * severity * 30)
    radius = tuple(math.ceil(3 * s) for s in sigma)
    wanted = ndimage.gaussian_filter(x.numpy(), sigma, mode="nearest", axes=(2, 3), radius=radius)
    np.testing.assert_allclose(corrupt(x, "blur", severity).numpy(), wanted, atol=1e-12)


def test_pixelate_is_block_means() -> None:
    x = images(height=20, width=40)
    wanted = x.reshape(6, 2, 10, 2, 20, 2).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(corrupt(x, "pixelate", 3), wanted)


@pytest.mark.parametrize(("height", "width"), [(61, 61), (41, 81)])
def test_rotation_turns_a_spot_about_the_centre_by_its_angle(height: int, width: int) -> None:
    row, column = height // 2, width // 2 + 15
    x = torch.zeros(20, 1, height, width)
    x[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1
    y = corrupt(x, "rotation", 2).double()
    mass = y.sum((1, 2, 3))
    down = (y.sum((1, 3)) @ torch.arange(height).double()) / mass - height // 2
    right = (y.sum((1, 2)) @ torch.arange(width).double()) / mass - width // 2
    angle = torch.rad2deg(torch.atan2(down, right))
    torch.testing.assert_close(angle.abs(), torch.full_like(angle, 16.0), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.hypot(down, right), torch.full_like(angle, 15.0), atol=0.05, rtol=0)
    assert angle.min() < 0 < angle.max()


def test_shift_moves_a_spot_by_its_distance_in_every_direction() -> None:
    x = torch.zeros(50, 1, 50, 50)
    x[:, :, 24:27, 24:27] = 1
    y = corrupt(x, "shift", 5).double()
    place = torch.arange(50).double()
    down, right = (y.sum((1, 3)) @ place) / 9 - 25, (y.sum((1, 2)) @ place) / 9 - 25
    torch.testing.assert_close(torch.hypot(down, right), torch.full_like(down, 10.0), atol=0.01, rtol=0)
    assert down.min() < -5 < 5 < down.max() and right.min() < -5 < 5 < right.max()


def test_a_flat_image_is_nothing_to_blur_pixelate_or_move() -> None:
    for kind in set(CORRUPTIONS) - set(VALUEWISE):
        torch.testing.assert_close(corrupt(grey(side=17), kind, 5), grey(side=17))


class Brightness(nn.Module):
    """Class 1 where the mean is above a half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = x.flatten(1).mean(1)
        return torch.stack([0.5 - m, m - 0.5], 1)


def test_accuracy_is_the_mean_over_kinds_and_severities() -> None:
    # Contrast keeps the mean, so it never changes this network's mind; salt and pepper does for some.
    x = images(400, 1, 4, 4)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    found = corruption_accuracy(Brightness(), x, y)
    assert found.kinds == tuple(CORRUPTIONS) and found.table.shape == (8, 5)
    assert found.mean == pytest.approx(float(found.table.mean()))
    assert bool((found.table[found.kinds.index("contrast")] > 0.99).all())
    i = found.kinds.index("salt-and-pepper")
    alone = corrupt(x, "salt-and-pepper", 4, generator=torch.Generator().manual_seed(7 + 4))
    again = corruption_accuracy(Brightness(), x, y, kinds=["salt-and-pepper"], severities=[4], seed=7)
    assert again.mean == float((Brightness()(alone).argmax(1) == y).double().mean())
    assert 0.5 < found.table[i, 4] < found.table[i, 0] < 1


def test_vectors_get_the_kinds_that_need_no_image_and_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.random.get_rng_state()
    x = torch.rand(30, 5, generator=torch.Generator().manual_seed(0))
    found = corruption_accuracy(net, x, torch.zeros(30, dtype=torch.long))
    assert found.kinds == VALUEWISE
    assert net.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corrupt(images(), "fog", 1), "no corruption is named 'fog'"),
        (lambda: corrupt(images(), "blur", 6), "severity"),
        (lambda: corrupt(torch.rand(3, 4), "blur", 1), "needs images"),
        (lambda: corrupt(images(), "blur", 1, bounds=(1, 1)), "bounds"),
        (lambda: corruption_accuracy(Brightness(), images(0), torch.zeros(0)), "at least one point"),
    ],
)
def test_bad_input_is_one_clear_error(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
