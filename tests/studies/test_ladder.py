"""The parts of a ladder: exact counts, controls that differ, where a layer is empty, and verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ladders import CONTROLS, climb, setting, small
from nucleate.models import build
from nucleate.pruning.masks import Masks
from nucleate.recipes.tickets import recipe
from nucleate.spec import ModelSpec
from nucleate.studies.ladder import masks as rungs
from nucleate.studies.ladder.arms import matching_width
from nucleate.studies.ladder.critical import critical_density
from nucleate.studies.ladder.progress import Progress, pack_progress, unpack_progress
from nucleate.studies.ladder.task import Outcome
from nucleate.studies.ladder.verdict import Level, interval, levels
from nucleate.training.rewind import RewindPoint


class TestCounts:
    def test_those_of_the_paper(self) -> None:
        lenet = build(ModelSpec(name="lenet", width=300), (1, 28, 28), 10, generator=torch.Generator())
        counts = [rungs.total_count(lenet, recipe("lenet-300-100").ladder, level) for level in range(20)]
        assert counts[:11] == [
            266200, 213060, 170538, 136511, 109282, 87490, 70051, 56094, 44923, 35981, 28823,
        ]  # fmt: skip
        assert (counts[15], counts[19]) == (9537, 3958)

    @pytest.mark.parametrize(("depth", "weights"), [(2, 4_300_992), (4, 2_425_024), (6, 2_261_184)])
    def test_convolutional_nets_have_the_papers_sizes_and_shares(self, depth: int, weights: int) -> None:
        spec = recipe(f"conv-{depth}")
        net = build(spec.model, (3, 32, 32), 10, generator=torch.Generator())
        assert sum(w.numel() for w in rungs.prunable(net).values()) == weights
        whole, pruned = (rungs.kept_counts(net, spec.ladder, level) for level in (0, 1))
        kept = {name: pruned[name] / whole[name] for name in whole}
        conv = 0.85 if depth == 6 else 0.9
        expected = {n: conv if "conv" in n else 0.9 if n == "classifier.weight" else 0.8 for n in kept}
        assert kept == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_every_level_keeps_exactly_its_count_though_all_weights_are_equally_large(self, scope: str) -> None:
        spec = small(ladder={"scope": scope})
        net = setting(spec).dense
        with torch.no_grad():
            # In scope global the tie is broken by index, so a second size keeps the last layers from losing everything.
            for w in net.parameters():
                w.copy_(torch.where(w > 0, 0.5, -0.5) * (1 + (w.shape[-1] < 64)))
        masks = Masks.dense(rungs.prunable(net))
        for level in range(1, 4):
            after = rungs.next_masks(net, spec.ladder, level, masks, None, 0, {})
            assert after.kept == rungs.total_count(net, spec.ladder, level)
            assert after.within(masks)
            masks = after


TIE, ABOVE = (-0.005, 0.0, 0.005), (0.02, 0.03, 0.04)


def halves(net: torch.nn.Module) -> Masks:
    """Masks that keep every second weight."""
    weights = rungs.prunable(net).items()
    return Masks({n: (torch.arange(w.numel()) % 2).view(w.shape).to(torch.uint8) for n, w in weights})


class TestCriticalDensity:
    def test_of_sizes_is_where_the_largest_weight_of_some_layer_is_the_next_to_go(self) -> None:
        arms = setting(small())
        sizes = {name: w.abs() for name, w in rungs.prunable(arms.dense).items()}
        smallest = min(float(w.max()) for w in sizes.values())
        exact = sum(int((w >= smallest).sum()) for w in sizes.values()) - 1
        total = sum(w.numel() for w in sizes.values())
        found = critical_density(arms, "magnitude") * total
        assert exact / 1.02 - 1 <= found <= exact

    def test_synflow_empties_no_layer_long_after_sizes_do(self) -> None:
        arms = setting(small())
        assert critical_density(arms, "synflow") < critical_density(arms, "magnitude") / 2

    def test_it_is_recorded_for_every_score(self, tmp_path: Path) -> None:
        run = climb(small(ladder={"rounds": 0, "at_init": ("snip", "random"), "critical": True}), tmp_path)
        rows = {r["arm"]: r["value"] for r in run.select(metric="critical_density")}
        assert rows.keys() == {"snip-init", "random-init"} and all(0 < value < 0.5 for value in rows.values())


class TestControls:
    def test_they_differ_from_the_ticket_and_from_each_other(self) -> None:
        spec = small(ladder={"controls": CONTROLS})
        made = setting(spec)
        generator = torch.Generator().manual_seed(7)
        trained = {k: v + 0.3 * torch.randn(v.shape, generator=generator) for k, v in made.initial.items()}
        masks = rungs.largest(made.initial, rungs.random_masks(halves(made.dense), generator))
        jobs = {job.arm: job for job in made.controls(1, masks, trained, None)}
        assert set(jobs) == set(CONTROLS) - {"dense-longer"}
        layers = {n: int(m.sum()) for n, m in masks.items()}
        for name in ("random", "layer-shuffle", "inverted", "one-shot"):
            job = jobs[name]
            assert {n: int(m.sum()) for n, m in job.masks.items()} == layers, name
            assert 0.0 < job.masks.compare(masks)["all"] < 0.9, name
            assert all(torch.equal(v, made.initial[k]) for k, v in job.model.state_dict().items()), name
        shuffled = jobs["global-shuffle"].masks
        assert shuffled.kept == masks.kept
        assert {n: int(m.sum()) for n, m in shuffled.items()} != layers
        assert jobs["random"].masks.compare(jobs["layer-shuffle"].masks)["all"] < 0.9
        assert jobs["inverted"].masks.compare(jobs["one-shot"].masks)["all"] < 0.1
        assert jobs["reinit"].masks.compare(masks)["all"] == 1.0
        fresh = jobs["reinit"].model.state_dict()["classifier.weight"]
        assert not torch.equal(fresh, made.initial["classifier.weight"])
        assert float(fresh.std()) == pytest.approx(float(made.initial["classifier.weight"].std()), rel=0.5)
        assert jobs["one-shot-longer"].spec.epochs == spec.train.epochs
        assert jobs["dense-small"].masks.density == 1.0

    def test_inversion_ranks_anew(self) -> None:
        weights = {"w": torch.tensor([0.0, -3.0, 1.0, -2.0])}
        masks = Masks({"w": torch.tensor([0, 1, 0, 1])})
        assert rungs.smallest(weights, masks)["w"].tolist() == [1, 0, 1, 0]
        assert rungs.largest(weights, masks)["w"].tolist() == [0, 1, 0, 1]

    def test_the_small_dense_net_has_the_tickets_number_of_weights(self) -> None:
        spec = recipe("lenet-300-100").model
        for kept in (213_060, 56_094, 35_981):
            width = matching_width(spec, (1, 28, 28), 10, kept)
            net = build(replace(spec, width=width), (1, 28, 28), 10, generator=torch.Generator())
            assert sum(w.numel() for w in rungs.prunable(net).values()) == pytest.approx(kept, rel=0.02)

    def test_a_network_without_a_width_is_refused(self) -> None:
        with pytest.raises(ValueError, match="dense-small needs a network whose width"):
            matching_width(ModelSpec(name="torch.nn:Identity"), (1, 8, 8), 10, 100)


class TestVerdict:
    @staticmethod
    def level(**gaps: tuple[float, float, float]) -> Level:
        named = {k.replace("_", "-"): v for k, v in gaps.items()}
        return Level(3, 0.2, 100, 10, 50.0, (0.9, 0.91, 0.92), named, {})

    @pytest.mark.parametrize(
        ("gaps", "word"),
        [
            ({"dense": TIE, "reinit": ABOVE, "random": ABOVE}, "ticket"),
            ({"dense": TIE, "reinit": ABOVE, "random": TIE}, "layer ratios only"),
            ({"dense": TIE, "reinit": TIE, "random": ABOVE}, "trainable from any init"),
            ({"dense": TIE, "reinit": (-0.02, 0.0, 0.04), "random": ABOVE}, "matching"),
            ({"dense": TIE}, "matching"),
            ({"dense": (-0.015, 0.0, 0.015)}, "undecided"),
            ({"dense": (-0.04, -0.03, -0.02)}, "below dense"),
        ],
    )  # fmt: skip
    def test_words(self, gaps: dict[str, tuple[float, float, float]], word: str) -> None:
        assert self.level(**gaps).verdict(0.01) == word

    def test_interval_is_students(self) -> None:
        from scipy import stats

        x = np.array([0.91, 0.93, 0.90, 0.95])
        low, high = stats.t.interval(0.95, 3, x.mean(), stats.sem(x))
        assert interval(x) == pytest.approx((low, x.mean(), high))

    def test_runs_without_a_ladder_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no finished level"):
            levels([])


def test_progress_keeps_weights_in_any_memory_format() -> None:
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    outcome = Outcome([5], [1.0], [0.5])
    outcome.best_weights = model.state_dict()
    progress = Progress(level=2, outcome=outcome, point=RewindPoint.take(model))
    again = unpack_progress(pack_progress(progress)).outcome
    assert again is not None
    for name, weight in model.state_dict().items():
        assert torch.equal(again.best_weights[name], weight)
