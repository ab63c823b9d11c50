"""Strong tickets: subset sums against enumeration, masks on weights that never move."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nucleate.geometry.subset_sum import best_subset_sum, subset_sum_error
from nucleate.models.mlp import MLP
from nucleate.pruning.learned import EdgePopup, freeze_random
from nucleate.spec import DataSpec, ModelSpec, SupermaskSpec, TrainSpec
from nucleate.studies import supermask


def enumerated(candidates: list[float], target: float) -> float:
    return min(
        abs(target - math.fsum(part))
        for r in range(len(candidates) + 1)
        for part in itertools.combinations(candidates, r)
    )


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_the_optimum_is_that_of_plain_enumeration(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    candidates = torch.rand(3, n, generator=generator, dtype=torch.float64) * 2 - 1
    targets = torch.rand(3, 7, generator=generator, dtype=torch.float64) - 0.5
    expected = [[enumerated(c.tolist(), float(z)) for z in row] for c, row in zip(candidates, targets, strict=True)]
    assert subset_sum_error(candidates, targets).numpy() == pytest.approx(np.array(expected), abs=1e-14)
    sums = best_subset_sum(candidates, targets[:, 0])
    assert (sums - targets[:, 0]).abs().numpy() == pytest.approx(np.array(expected)[:, 0], abs=1e-14)


def test_errors_fall_geometrically() -> None:
    """Lueker: n = O(log 1/eps) samples of U[-1, 1] suffice, so log error falls linearly."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.linspace(-0.5, 0.5, 20, dtype=torch.float64).expand(20, -1)
    ns = list(range(4, 19, 2))
    logs = [
        float(subset_sum_error(torch.rand(20, n, generator=generator).double() * 2 - 1, targets).amax(1).log10().mean())
        for n in ns
    ]
    slope, _ = np.polyfit(ns, logs, 1)
    assert slope < -0.2
    assert np.corrcoef(ns, logs)[0, 1] < -0.99


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 40"):
        subset_sum_error(torch.zeros(41), torch.zeros(1))
    with pytest.raises(ValueError, match="do not fit"):
        subset_sum_error(torch.zeros(2, 3), torch.zeros(3, 1))


class TestEdgePopup:
    @staticmethod
    def make() -> tuple[nn.Module, EdgePopup]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = MLP(6, 3, width=10, depth=1)
        freeze_random(net, 0.4, law="signed-constant", generator=torch.Generator().manual_seed(1))
        return net, EdgePopup(net, 0.4, generator=torch.Generator().manual_seed(2))

    def test_the_gradient_passes_straight_through_to_the_score(self) -> None:
        net, popup = self.make()
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
        popup(x).square().sum().backward()
        # The reference: dense gradient of the effective weight, times w, times the sign of the score.
        masked = MLP(6, 3, width=10, depth=1)
        masked.load_state_dict(net.state_dict())
        popup.masks().apply(masked)
        masked(x).square().sum().backward()
        for name, score in popup.scores.items():
            weight = dict(net.named_parameters())[name].detach()
            grad = dict(masked.named_parameters())[name].grad
            assert grad is not None
            assert score.grad is not None
            assert torch.allclose(score.grad, grad * weight * score.detach().sign(), atol=1e-5)
            assert bool((score.grad[popup.masks()[name] == 0] != 0).any()), "masked weights can come back"

    def test_the_evaluated_mask_is_the_exported_one(self) -> None:
        net, popup = self.make()
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
        out = popup(x)
        popup.masks().apply(net)
        assert torch.equal(out, net(x))
        assert popup.masks().densities == {"hidden.0.linear.weight": 0.4, "classifier.weight": 0.4}

    def test_weights_never_move(self) -> None:
        net, popup = self.make()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        optimizer = torch.optim.SGD(list(popup.scores.values()), lr=0.5)
        first = popup.masks()
        for _ in range(5):
            optimizer.zero_grad()
            popup(torch.randn(8, 6, generator=torch.Generator().manual_seed(4))).logsumexp(1).sum().backward()
            optimizer.step()
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert popup.masks().compare(first)["all"] < 1

    def test_a_density_outside_is_refused(self) -> None:
        with pytest.raises(ValueError, match="kept share"):
            EdgePopup(nn.Linear(2, 2), 0.0, generator=torch.Generator())


def test_frozen_weights_have_their_laws_size() -> None:
    net = MLP(200, 10, width=300, depth=1)
    freeze_random(net, 0.5, law="normal", generator=torch.Generator().manual_seed(0))
    assert float(net.get_parameter("hidden.0.linear.weight").detach().std()) == pytest.approx(
        (4 / 200) ** 0.5, rel=0.02
    )
    freeze_random(net, 0.5, law="signed-constant", generator=torch.Generator().manual_seed(0))
    sizes = net.get_parameter("hidden.0.linear.weight").detach().abs()
    assert float(sizes.min()) == float(sizes.max()) == pytest.approx((4 / 200) ** 0.5)


def small() -> SupermaskSpec:
    return SupermaskSpec(
        recipe="small",
        data=DataSpec(name="digits", train_size=300, test_size=100),
        model=ModelSpec(name="mlp", depth=1),
        train=TrainSpec(lr=0.1, weight_decay=1e-4, schedule="cosine", epochs=8, batch_size=50, threads=1),
        candidates=(2, 8),
        targets=9,
        draws=4,
        widths=(8, 128),
        densities=(0.5,),
    )


DROPPING = """
from torch import nn

def net(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes))
"""


def test_a_network_that_drops_units_ends_in_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropping.py").write_text(DROPPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = replace(small(), model=ModelSpec(name="dropping:net"), widths=(8,))
    before = torch.get_rng_state()
    first = supermask.run(spec, root=tmp_path / "one", threads=1)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.rand(5)
        again = supermask.run(spec, root=tmp_path / "two", threads=1)
    assert first.records == again.records


def test_a_study_from_spec_to_records(tmp_path: Path) -> None:
    run = supermask.run(small(), root=tmp_path, threads=1)
    value = {(r["metric"], r.get("arm"), r.get("width"), r.get("candidates")): r["value"] for r in run.records}
    assert value["subset_error", None, None, 8] < 0.2 * value["subset_error", None, None, 2]
    assert value["rebuilt_error", None, None, 8] < value["rebuilt_error", None, None, 2]
    assert value["rebuilt_accuracy", None, None, 8] > value["rebuilt_accuracy", None, None, 2]
    assert value["accuracy", "edge-popup", 128, None] > value["accuracy", "random mask", 128, None] + 0.3
    again = supermask.run(small(), root=tmp_path / "again", threads=1)
    assert again.records == run.records


def test_a_killed_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = supermask.run(small(), root=tmp_path / "whole", threads=1).records
    original = supermask._Supermask.popup

    def dies(self: supermask._Supermask, width: int, density: float) -> list[dict[str, object]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(supermask._Supermask, "popup", dies)
    with pytest.raises(KeyboardInterrupt):
        supermask.run(small(), root=tmp_path / "killed", threads=1)
    monkeypatch.setattr(supermask._Supermask, "popup", original)
    assert supermask.run(small(), root=tmp_path / "killed", threads=1).records == whole
