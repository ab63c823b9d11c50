"""The descent study: the peak where it must be, labels by seed, resume, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nucleate.cli.main import main
from nucleate.models import build
from nucleate.recipes.descent import RECIPES, recipe
from nucleate.report import figures, page
from nucleate.runs import Run
from nucleate.spec import (
    CapacitySpec,
    DataSpec,
    DescentSpec,
    ModelSpec,
    SupermaskSpec,
    TrainSpec,
    from_dict,
    to_dict,
)
from nucleate.studies import capacity, memorise, progress, supermask
from nucleate.studies.descent import run, size, trained
from nucleate.studies.descent.tables import along_width
from nucleate.studies.descent.trained import Cell, epochs_at, stacks
from nucleate.studies.fits import agreement, fit_values
from nucleate.studies.points import take

FEATURES = DescentSpec(
    recipe="small",
    seeds=(0, 1),
    data=DataSpec(train_size=100, label_noise=0.2),
    model=ModelSpec(name="relu-features"),
    train=TrainSpec(threads=1),
    widths=(20, 50, 90, 100, 110, 200, 400),
    ridges=(0.1,),
    validation=100,
)
NETWORKS = DescentSpec(
    recipe="nets",
    seeds=(0, 1),
    data=DataSpec(train_size=100, label_noise=0.2),
    model=ModelSpec(name="mlp", depth=1),
    train=TrainSpec(
        optimizer="adam", lr=2e-2, weight_decay=0.0, schedule="constant", epochs=40, batch_size=50, threads=1
    ),
    widths=(2, 8, 64),
    samples=(50, 100),
    validation=50,
    points=5,
)


def means(run: Run, metric: str, split: str, **where: Any) -> dict[int, float]:
    found: dict[int, dict[Any, float]] = {}
    for row in run.records:
        if row["metric"] == metric and row["split"] == split and all(row.get(k) == v for k, v in where.items()):
            found.setdefault(row["width"], {})[row["seed"]] = row["value"]
    return {w: sum(v.values()) / len(v) for w, v in found.items()}


def test_features_peak_where_their_number_is_that_of_points(tmp_path: Path) -> None:
    done = run(FEATURES, root=tmp_path)
    error = means(done, "error", "test", antidote="none")
    assert max(error, key=error.__getitem__) == 100
    norm = means(done, "norm", "", antidote="none")
    assert max(norm, key=norm.__getitem__) == 100
    variance, bias = (means(done, m, "test", antidote="none") for m in ("variance", "bias_squared"))
    assert variance[100] > 10 * variance[400] and abs(bias[50]) < variance[100]
    fit = means(done, "loss", "train", antidote="none")
    assert fit[90] > 1e-6 > fit[100]
    (threshold,) = done.select(metric="threshold")
    (below,) = done.select(metric="threshold_below")
    assert (below["value"], threshold["value"]) == (90, 100)
    tuned = means(done, "error", "test", antidote="tuned ridge")
    assert tuned[100] < error[100] - 0.2
    table = along_width(done)
    assert "peak" in table and "at 100" in table
    assert "means of 2 seeds" in table


def test_refining_adds_sizes_inside_the_bracket(tmp_path: Path) -> None:
    spec = replace(FEATURES, widths=(50, 200), refine=2, ridges=(), validation=0)
    done = run(spec, root=tmp_path)
    widths = sorted(means(done, "error", "test", antidote="none"))
    assert widths == [50, 79, 126, 200]
    (threshold,) = done.select(metric="threshold")
    assert threshold["value"] == 126


def test_trees_overfit_and_do_not_come_back(tmp_path: Path) -> None:
    spec = replace(FEATURES, model=ModelSpec(name="tree"), widths=(2, 10, 80), ridges=(), validation=0)
    done = run(spec, root=tmp_path)
    fitted = means(done, "memorised", "train")
    assert fitted[80] > fitted[10]
    assert means(done, "error", "train")[80] < 0.05


def test_networks_along_width_samples_and_epochs(tmp_path: Path) -> None:
    done = run(NETWORKS, root=tmp_path)
    rows = done.records
    assert {r["seed"] for r in rows} == {0, 1, None}
    assert {r["epoch"] for r in rows if r.get("samples") == 100 and r["metric"] == "error"} >= {0, 1, 40}
    # Half the points, twice the epochs, the same steps.
    assert max(r["epoch"] for r in rows if r.get("samples") == 50) == 80
    train = means(done, "error", "train", antidote="none", samples=100)
    assert train[64] < train[2]
    assert means(done, "memorised", "train", antidote="none", samples=100)[64] > 0.9
    assert set(means(done, "error", "test", antidote="early stopping", samples=100)) == {2, 8, 64}
    assert set(means(done, "nc1", "train", samples=100)) == {2, 8, 64}
    assert means(done, "effective_complexity", "train")[64] == 100
    assert all(r["value"] > 0 for r in rows if r["metric"] == "distance" and r["epoch"] > 0)


@pytest.mark.parametrize(
    "spec",
    [NETWORKS, replace(NETWORKS, samples=(), widths=(16,), validation=0, points=2, densities=(0.5, 0.1), epsilon=0.1)],
    ids=["along width", "along sparsity"],
)
def test_a_killed_run_ends_in_the_same_records(
    spec: DescentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(spec, root=tmp_path / "whole")
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)
    for after in (30, 200, 300):
        ticks = 0

        def stop(n: int, after: int = after) -> None:
            nonlocal ticks
            ticks += n
            if ticks > after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(spec, root=tmp_path / "killed", tick=stop)
    resumed = run(spec, root=tmp_path / "killed")
    assert resumed.records == whole.records
    before = (resumed.path / "records.jsonl").stat().st_mtime_ns
    assert (run(spec, root=tmp_path / "killed").path / "records.jsonl").stat().st_mtime_ns == before


def test_convolutions_train_in_lockstep(tmp_path: Path) -> None:
    spec = replace(
        NETWORKS,
        model=ModelSpec(name="convnet", depth=1),
        widths=(2, 4),
        samples=(),
        train=replace(NETWORKS.train, epochs=2),
        points=2,
    )
    done = run(spec, root=tmp_path)
    assert set(means(done, "error", "test", antidote="none")) == {2, 4}
    assert means(done, "churn", "test").keys() == {2, 4}


def test_a_decay_is_an_antidote_of_its_own(tmp_path: Path) -> None:
    spec = replace(NETWORKS, decays=(1e-1,), samples=(), widths=(32,), points=2)
    done = run(spec, root=tmp_path)
    norm = {a: means(done, "norm", "", antidote=a)[32] for a in ("none", "weight decay 0.1")}
    assert norm["weight decay 0.1"] < norm["none"]
    assert "weight decay" not in along_width(done), "one width has no shape to tell"


def test_students_of_a_cold_teacher_learn_its_answers_and_of_a_warm_one_more(tmp_path: Path) -> None:
    """softmax(z / 0) is one-hot: where the widest network fits all labels, its students are trained on labels."""
    spec = replace(
        NETWORKS, samples=(), widths=(4, 64), validation=0, points=2, train=replace(NETWORKS.train, epochs=80)
    )
    cold, warm = (run(replace(spec, distil=t), root=tmp_path) for t in (1e-6, 5.0))
    fitted = cold.select(metric="error", split="train", epoch=80, width=64, antidote="none")
    assert [r["value"] for r in fitted] == [0.0, 0.0], "or the law below does not apply"
    for metric in ("error", "loss", "norm"):
        plain, taught = (
            [r["value"] for r in cold.select(metric=metric, epoch=80, antidote=a)] for a in ("none", "distillation")
        )
        assert taught == pytest.approx(plain, rel=1e-4)
    norm = {a: means(warm, "norm", "", antidote=a)[64] for a in ("none", "distillation")}
    assert norm["distillation"] < norm["none"], "soft targets need no large outputs"
    assert size(replace(spec, distil=5.0)) == 2 * size(spec)


def test_wrong_labels_belong_to_the_seed() -> None:
    points = take(DataSpec(noise_kind="symmetric"), None, size=200, validation=50)
    few, more = points.labels(3, 0.1)[0], points.labels(3, 0.3)[0]
    wrong = few != points.clean
    assert int(wrong.sum()) == 20
    assert torch.equal(few[wrong], more[wrong])
    assert not torch.equal(points.labels(4, 0.1)[0], few)
    assert len(points.held_clean) == 50


def test_measures_of_a_fit_by_hand() -> None:
    z = torch.eye(3)[[0, 1, 2, 0]] * 9
    given, clean = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 2, 0])
    rows = {(s, m): v for s, m, v in fit_values(z, given, clean, z, clean, squared=False)}
    assert rows["train", "error"] == 0.5 and rows["test", "error"] == 0
    assert rows["train", "memorised"] == 0 and rows["train", "recovered"] == 1 and rows["train", "clean_error"] == 0


def test_agreement_of_seeds_is_unbiased() -> None:
    """Outputs y + b + noise: the corrected bias is |b|^2, the variance (S - 1)/S of the noise's."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(20_000, dtype=torch.int64)
    target = torch.tensor([1.0, 0.0]) - 0.5
    outputs = target + torch.tensor([0.3, 0.4]) + 0.7 * torch.randn(3, 20_000, 2, generator=generator)
    found = {m: v for _, m, v in agreement(outputs, truth, squared=True)}
    assert found["bias_squared"] == pytest.approx(0.25, abs=0.02)
    assert found["variance"] == pytest.approx(2 * 0.49 * 2 / 3, rel=0.02)
    same = {m: v for _, m, v in agreement(outputs[:1].expand(2, -1, -1), truth, squared=True)}
    assert same["churn"] == 0 and same["variance"] == 0


def test_stacks_hold_near_widths_of_one_sample_and_every_seed() -> None:
    cells = [Cell(w, n, 0.2, 0.0) for n in (50, 100) for w in (2, 16, 64, 100, 512)]
    found = stacks(NETWORKS, cells, {w: 75 * w for w in (2, 16, 64, 100, 512)})
    assert [[c.width for c in stack] for stack in found] == 2 * [[2, 16], [64, 100], [512]]
    assert all(len({c.samples for c in stack}) == 1 for stack in found)
    assert epochs_at(NETWORKS, 50, 100) == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (0,)}, "widths must be whole numbers from 1"),
        ({"samples": (0,)}, "samples must be at least 1"),
        ({"noises": (1.5,)}, r"label noise is a share in \[0, 1\], not 1.5"),
        ({"seeds": (0, 0)}, "seeds must be different"),
        ({"decays": (0.1,)}, "random features take ridges"),
        ({"ridges": (-1.0,)}, "penalties above 0"),
        ({"fit_error": 1.0}, "fit_error must be in"),
        ({"densities": (0.5,)}, "kept shares of a network's weights"),
        ({"epsilon": 0.1}, "for networks"),
        ({"distil": 2.0}, "for networks, without refine"),
        ({"model": ModelSpec(), "ridges": (), "densities": (0.5, 0.5)}, "different kept shares"),
        ({"model": ModelSpec(), "ridges": (), "densities": (1.0,)}, "above 0 and below 1, not 1.0"),
        ({"model": ModelSpec(), "ridges": (), "densities": (0.0,)}, "above 0 and below 1, not 0.0"),
        ({"model": ModelSpec(), "ridges": (), "epsilon": 2.0}, "share of the inputs' range"),
        ({"data": DataSpec(train_size=5000)}, "asks for"),
        ({"validation": -1}, "validation is a number of points"),
    ],
)
def test_nonsense_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(replace(FEATURES, **change), root=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_specs(name: str) -> None:
    spec = recipe(name)
    assert spec.recipe == name and size(spec) > 0
    assert from_dict(DescentSpec, to_dict(spec)) == spec


def test_from_the_command_line_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "descent",
        "digits-features",
        "--data.train-size",
        "60",
        "--widths",
        "30",
        "60",
        "90",
        "--seeds",
        "5",
        "6",
    ]
    options = ["--train.threads", "1", "--validation", "40", "--ridges", "0.1", "--out", str(tmp_path), "--jobs", "1"]
    assert main([*command, *options]) == 0
    out = capsys.readouterr().out
    assert "threshold at 60" in out
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    text = (folder / "report.html").read_text()
    assert "Double descent along width" in text and "tuned ridge" in text
    assert "Descent along samples" not in text, "there is one sample size only"
    assert [p.name for p in figures(Run(folder), tmp_path / "figures", ("png",))] == ["descent.png"]
    assert main([*command, "--noises", "2.0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


OWN = """
import math
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, shape, classes, width, skip=0.0, drop=0.0):
        super().__init__()
        self.a, self.r, self.b = nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, width)
        self.r2, self.c = nn.ReLU(), nn.Linear(width, classes)
        self.skip, self.drop = skip, drop

    def forward(self, x):
        h = self.r(self.a(x.flatten(1)))
        return self.c(self.skip * h + self.r2(self.b(F.dropout(h, self.drop, self.training))))

def wide(shape, classes, width): return Net(shape, classes, width)
def chain(shape, classes): return Net(shape, classes, 8)
def skipping(shape, classes, width): return Net(shape, classes, width, skip=1.0)
def dropping(shape, classes): return Net(shape, classes, 8, drop=0.9)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Module of networks of a user's own."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_own_networks_train_as_their_forward_pass_says(tmp_path: Path, own: str) -> None:
    small = replace(NETWORKS, widths=(8,), samples=(), validation=0, points=2)
    losses = {}
    for name in ("chain", "skipping", "dropping"):
        done = run(replace(small, model=ModelSpec(name=f"{own}:{name}")), root=tmp_path)
        losses[name] = [r["value"] for r in done.select(metric="loss", split="train", epoch=40)]
    assert len({tuple(values) for values in losses.values()}) == 3
    assert max(losses["chain"]) < min(losses["dropping"])


def test_the_width_of_an_own_network_is_its_width(tmp_path: Path, own: str) -> None:
    spec = replace(NETWORKS, model=ModelSpec(name=f"{own}:wide"), widths=(4, 9), samples=(), validation=0, points=2)
    spec = replace(spec, train=replace(spec.train, epochs=2))
    done = run(spec, root=tmp_path)
    told = {r["width"]: r["parameters"] for r in done.records if "parameters" in r}
    assert told == {w: 65 * w + w * (w + 1) + 10 * (w + 1) for w in (4, 9)}
    name = f"{own}:chain"
    with pytest.raises(ValueError, match=rf"{name} takes no width, so widths 4, 9 would all be one network"):
        run(replace(spec, model=ModelSpec(name=name)), root=tmp_path)
    strong = SupermaskSpec(model=ModelSpec(name=name), widths=(4, 9))
    parents = CapacitySpec(model=ModelSpec(name=name), parents=(4, 9))
    for study, given in ((supermask, strong), (capacity, parents)):
        with pytest.raises(ValueError, match="takes no width"):
            study.run(given, root=tmp_path)  # type: ignore[attr-defined]


def exploding(spec: ModelSpec, *args: Any, **options: Any) -> torch.nn.Module:
    """Networks that diverge at their first step where the width is 8."""
    model = build(spec, *args, **options)
    if spec.width == 8:
        for parameter in model.parameters():
            parameter.data.mul_(1e25)
    return model


@pytest.mark.parametrize("name", ["mlp", "skipping"])
def test_networks_that_diverge_are_told_and_have_no_measures(
    tmp_path: Path, own: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trained, "build", exploding)
    model = replace(NETWORKS.model, name=name if name == "mlp" else f"{own}:{name}")
    spec = replace(
        NETWORKS, model=model, widths=(8, 12), samples=(), points=3, densities=(0.5,), epsilon=0.1, validation=20
    )
    done = run(spec, root=tmp_path)
    ends = {r["width"]: set() for r in done.records if "width" in r}  # type: ignore[var-annotated]
    for r in done.records:
        if (r["metric"], r["split"], r["epoch"]) == ("error", "train", 40):
            ends[r["width"]].add(r["value"] == r["value"])
    assert ends == {8: {False}, 12: {True}}
    assert "8 of 16 networks diverged" in along_width(done)
    predicted = {k: v for n in done.tensor_names if n.startswith("pred") for k, v in done.tensors(n).items()}
    assert all((v == 255).all() == k.startswith("width 8") for k, v in predicted.items())
    with pytest.raises(ValueError, match=r"all 8 networks diverged: lower the learning rate \(0.02\)"):
        run(replace(spec, widths=(8,)), root=tmp_path)


def test_maps_come_with_a_second_axis(tmp_path: Path) -> None:
    done = run(NETWORKS, root=tmp_path)
    text = page([done], tmp_path / "page.html").read_text()
    assert "Two axes at once" in text and "width x epochs" in text and "Effective model complexity" in text


def test_memorise_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.train-size", "60", "--widths", "32", "--model.depth", "2", "--train.epochs", "80", "--points", "6"]
    more = ["--noises", "0", "1", "--seeds", "0", "1", "--train.lr", "0.02", "--train.batch-size", "30", "--jobs", "1"]
    assert main(["memorise", "digits", *small, *more, "--train.threads", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "memorised" in out and "depth" in out
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    done = Run(folder)
    assert done.spec["study"] == "memorise" and {r["study"] for r in done.records} == {"memorise"}
    fitted = [r["value"] for r in done.select(metric="fit_epoch", noise=1.0)]
    assert len(fitted) == 2 and all(0 < v <= 80 for v in fitted)
    chance = [r["value"] for r in done.select(metric="error", split="test", noise=1.0, epoch=80)]
    assert min(chance) > 0.7
    assert "Fitting labels that are wrong" in (folder / "report.html").read_text()


def test_memorise_shows_pruned_networks_apart(tmp_path: Path) -> None:
    spec = replace(NETWORKS, study="memorise", widths=(8,), samples=(), points=2)
    whole, pruned = (run(replace(spec, densities=d), root=tmp_path) for d in ((), (0.1,)))
    told = memorise.along_noise(pruned)
    assert told.startswith(memorise.along_noise(whole)) and "ticket        0.1" in told


def test_the_landscape_of_every_network_for_an_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = replace(
        NETWORKS, samples=(), noises=(0.0, 0.2), landscape=True, points=2, train=replace(NETWORKS.train, epochs=10)
    )
    done = run(spec, root=tmp_path)
    for metric in ("sharpness", "margin", "path_norm", "spectral_product", "noise_sigma"):
        values = [r["value"] for r in done.select(metric=metric)]
        assert len(values) == 12 and all(v == v for v in values)
    assert main(["audit", str(done.path)]) == 0
    assert "sharpness (train)" in capsys.readouterr().out
