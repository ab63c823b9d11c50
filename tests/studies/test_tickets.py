"""The ladder of tickets: one test for every defect that public implementations carried for years."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ladders import CONTROLS, climb, contents, small
from nucleate.data import load
from nucleate.models import build
from nucleate.pruning.masks import Masks
from nucleate.runs import Run
from nucleate.spec import ModelSpec
from nucleate.studies import tickets
from nucleate.studies.ladder import arms as arms_module
from nucleate.studies.ladder.arms import Arms
from nucleate.studies.ladder.task import Task
from nucleate.studies.ladder.verdict import ladder_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return climb(small(seeds=2, ladder={"controls": CONTROLS}), tmp_path_factory.mktemp("ladder"))


class TestLadder:
    def test_every_arm_is_told_at_every_level(self, finished: Run) -> None:
        told = {(r["level"], r["arm"], r["seed"]) for r in finished.select(metric="stop_accuracy")}
        assert told == {
            (level, arm, seed) for level in (1, 2) for arm in ("ticket", *CONTROLS) for seed in (100, 101)
        } | {(0, "ticket", seed) for seed in (100, 101)}

    def test_masks_shrink_and_pruned_weights_are_zero(self, finished: Run) -> None:
        before: Masks | None = None
        for level in range(3):
            masks, weights = tickets.read_ticket(finished, level, 101)
            assert all(not weights[name][mask == 0].any() for name, mask in masks.items())
            assert before is None or masks.within(before)
            before = masks

    def test_the_stop_is_the_minimum_of_the_validation_loss(self, finished: Run) -> None:
        for row in finished.select(metric="stop_step", level=1, arm="reinit"):
            curve = finished.select(metric="loss", level=1, arm="reinit", seed=row["seed"])
            best = min(curve, key=lambda r: (r["value"], r["step"]))
            assert row["value"] == best["step"]
            assert row["censored"] == (best["step"] == curve[-1]["step"])

    def test_the_minimum_is_paid_for_on_validation_points_only(self, finished: Run) -> None:
        data = load(small().data)
        task = Task.of(data, 40, 0)
        rows = {tuple(x.flatten().tolist()) for x in task.validation.inputs}
        assert len(task.inputs) == 160
        assert not rows & {tuple(x.flatten().tolist()) for x in task.inputs}

    def test_dense_longer_has_the_budget_of_all_rounds(self, finished: Run) -> None:
        rows = {r["level"]: r for r in finished.select(metric="end_accuracy", arm="dense-longer", seed=100)}
        assert [rows[level]["epoch"] for level in (1, 2)] == [4, 6]

    def test_a_finished_ladder_is_not_climbed_again(self, finished: Run) -> None:
        ticks: list[int] = []
        spec = small(seeds=2, ladder={"controls": CONTROLS})
        assert climb(spec, finished.path.parent, ticks.append).path == finished.path
        assert sum(ticks) == tickets.size(spec)

    def test_the_table_shows_every_level(self, finished: Run) -> None:
        table = ladder_table([finished], 0.01)
        assert len(table.splitlines()) == 5
        assert "dense-small" in table


@pytest.mark.parametrize("after", ["reset", "lr-rewind"])
def test_a_stack_tells_what_single_trainings_tell(after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small(ladder={"after": after, "controls": ("reinit", "random"), "every": 4})
    stacked = climb(spec, tmp_path / "stacked")
    monkeypatch.setattr(tickets, "stackable", lambda model: False)
    single = climb(spec, tmp_path / "single")
    assert (stacked.env["stacked"], single.env["stacked"]) == (True, False)
    for metric in ("loss", "stop_step", "end_accuracy"):
        a, b = (
            sorted(r.select(metric=metric), key=lambda r: (r["level"], r["arm"], r["step"])) for r in (stacked, single)
        )
        assert [(r["level"], r["arm"], r["step"]) for r in a] == [(r["level"], r["arm"], r["step"]) for r in b]
        assert [r["value"] for r in a] == pytest.approx([r["value"] for r in b], rel=1e-3)


@pytest.mark.parametrize(
    ("ladder", "single"),
    [
        ({"controls": ("reinit", "random", "dense-longer")}, False),
        ({"controls": ("reinit", "one-shot"), "rewind_step": 2}, True),
        ({"controls": (), "after": "fine-tune"}, True),
        ({"controls": ("random",), "at_init": ("snip",)}, True),
    ],
)
def test_a_killed_ladder_ends_in_the_same_bits(
    ladder: dict[str, Any], single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small(ladder={"rounds": 1, **ladder})
    if single:
        monkeypatch.setattr(tickets, "stackable", lambda model: False)
        monkeypatch.setattr(tickets, "CHECKPOINT_SECONDS", -1.0)  # after every evaluation
    whole = contents(climb(spec, tmp_path / "whole"))
    calls = 0

    class Killed(BaseException):
        pass

    kept = tickets.pack_progress

    def dying(progress: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls % (4 if single else 2) == 0:
            raise Killed
        return kept(progress)

    monkeypatch.setattr(tickets, "pack_progress", dying)
    kills = 0
    while True:
        try:
            run = climb(spec, tmp_path / "killed")
            break
        except Killed:
            kills += 1
    assert kills >= (2 if single else 1)
    again = contents(run)
    assert [k for k in whole if again[k] != whole[k]] == []


def test_a_second_ladder_in_the_process_starts_clean(tmp_path: Path) -> None:
    spec = small(ladder={"controls": ("reinit", "random")})
    first = contents(climb(spec, tmp_path / "first"))
    climb(small(seed=5), tmp_path / "other")
    assert contents(climb(spec, tmp_path / "second")) == first


@pytest.mark.parametrize("batchnorm", [False, True])
def test_after_every_reset_surviving_weights_are_the_initial_ones(
    batchnorm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[int, dict[str, torch.Tensor], Masks]] = []
    original = arms_module.Arms.ticket

    def watched(self: Arms, level: int, masks: Masks, *rest: Any) -> Any:
        job = original(self, level, masks, *rest)
        starts.append((level, {k: v.clone() for k, v in job.model.state_dict().items()}, masks))
        return job

    monkeypatch.setattr(arms_module.Arms, "ticket", watched)
    monkeypatch.setattr(tickets, "stackable", lambda model: False)
    spec = small(model=ModelSpec(name="lenet", width=12, batchnorm=batchnorm), ladder={"rounds": 3, "controls": ()})
    run = climb(spec, tmp_path)
    initial = build(spec.model, (1, 8, 8), 10, generator=torch.Generator().manual_seed(spec.seed)).state_dict()
    assert [level for level, _, _ in starts] == [0, 1, 2, 3]
    for _, state, _ in starts:
        assert all(torch.equal(v, initial[k]) for k, v in state.items()), "weights, running statistics, counters"
    _, trained = tickets.read_ticket(run, 3, spec.seed)
    assert not torch.equal(trained["classifier.weight"], initial["classifier.weight"])


def test_rewinding_to_a_step_goes_on_from_that_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "stackable", lambda model: False)
    run = climb(small(ladder={"rewind_step": 3, "controls": ("reinit",)}), tmp_path)
    steps = {(r["level"], r["arm"]): [] for r in run.select(metric="loss")}  # type: ignore[var-annotated]
    for r in run.select(metric="loss"):
        steps[r["level"], r["arm"]].append(r["step"])
    assert steps[0, "ticket"] == [0, 3, 6, 8]
    assert steps[1, "ticket"] == steps[2, "ticket"] == [3, 6, 8]
    assert steps[1, "reinit"] == [0, 3, 6, 8]


def test_fine_tuning_and_learning_rate_rewinding_keep_the_trained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "stackable", lambda model: False)
    first = {}
    for after in ("reset", "lr-rewind", "fine-tune"):
        run = climb(small(ladder={"after": after, "controls": ()}), tmp_path / after)
        first[after] = next(r["value"] for r in run.select(metric="loss", level=1))
    assert first["lr-rewind"] == first["fine-tune"] < first["reset"]


def test_pruning_before_training_shares_the_tickets_number_of_weights(tmp_path: Path) -> None:
    methods = ("random", "magnitude", "snip")
    run = climb(small(ladder={"controls": (), "at_init": methods, "control_levels": (2,)}), tmp_path)
    weights = {r["arm"]: r["weights"] for r in run.select(metric="stop_accuracy", level=2)}
    assert weights == dict.fromkeys(("ticket", *(f"{m}-init" for m in methods)), weights["ticket"])


@pytest.mark.parametrize(
    ("ladder", "says"),
    [
        ({"remove_dense": 1.0}, "ladder.remove_dense is the share"),
        ({"control_levels": (9,)}, "between 1 and the 2 rounds"),
        ({"validation": 200}, "between 1 and 199"),
        ({"every": 0}, "ladder.every at least 1"),
        ({"rewind_step": 5, "after": "fine-tune"}, "goes with ladder.after reset"),
        ({"rewind_step": 8}, "not before the training's end at step 8"),
        ({"method": "magnitud"}, "did you mean magnitude"),
        ({"at_init": ("snip", "snap")}, "no score is named 'snap'"),
        ({"remove_dense": 0.999}, "level 2 of the ladder leaves no weight in hidden.0.linear.weight, hidden.1"),
        ({"remove_dense": 0.999, "scope": "global"}, "level 2 of the ladder leaves no weight in the network"),
    ],
)
def test_what_cannot_be_climbed_is_refused(ladder: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        climb(small(ladder=ladder), tmp_path)
    assert not list(tmp_path.iterdir()), "refused before anything is trained"


def test_seeds_that_cannot_be_stacked_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot stack its 2 seeds"):
        climb(small(seeds=2, ladder={"rewind_step": 2}), tmp_path)


def test_the_page_shows_the_ladder(finished: Run, tmp_path: Path) -> None:
    from nucleate.report import figures, page

    text = page([finished], tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in text for name in ("tickets", "tickets-curves", "tickets-portrait", "tickets-collapse"))
    assert "dense-longer" in text
    made = {path.stem for path in figures([finished], tmp_path / "figures", formats=["png"])}
    assert {"tickets", "tickets-curves", "tickets-portrait", "tickets-collapse"} <= made


def test_surviving_inputs_are_counted_where_they_are(finished: Run) -> None:
    masks, _ = tickets.read_ticket(finished, 2, 100)
    rows = finished.select(metric="input_weights", seed=100)
    image = np.zeros((8, 8))
    for r in rows:
        image[7 - r["row"], r["column"]] = r["value"]
    assert len(rows) == 64
    assert np.array_equal(image.ravel(), masks["hidden.0.linear.weight"].numpy().sum(0))


def test_portrait_against_hand_counts(finished: Run) -> None:
    masks, weights = tickets.read_ticket(finished, 2, 101)
    initial = build(small().model, (1, 8, 8), 10, generator=torch.Generator().manual_seed(101)).state_dict()
    kept = {n: m.bool() for n, m in masks.items()}
    w0, w = (torch.cat([x[n][k] for n, k in kept.items()]).double() for x in (initial, weights))
    said = {r["metric"]: r["value"] for r in finished.select(level=2, seed=101, part="all")}
    assert said["sign_agreement"] == pytest.approx(float((w0.sign() == w.sign()).double().mean()))
    assert said["distance"] == pytest.approx(float((w - w0).norm() / w0.norm()))
    other = tickets.read_ticket(finished, 2, 100)[0]
    both = sum(int((m & other[n]).sum()) for n, m in masks.items())
    overlap = finished.select(metric="overlap", level=2, seed=101)[0]["value"]
    assert overlap == pytest.approx(both / (2 * masks.kept - both))
