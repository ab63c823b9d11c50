"""Specs: round trips, refusals, hashes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleate.recipes.collapse import RECIPES, recipe
from nucleate.spec import CollapseSpec, DataSpec, SpecError, TrainSpec, digest, from_dict, from_toml, to_dict, to_toml


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipe_survives_toml(name: str, tmp_path: Path) -> None:
    spec = recipe(name)
    (tmp_path / "spec.toml").write_text(to_toml(spec), encoding="utf-8")
    assert from_toml(CollapseSpec, tmp_path / "spec.toml") == spec
    assert spec.recipe == name


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0.01, 1e3), st.integers(1, 10**6))
def test_any_text_and_number_survives_toml(name: str, lr: float, size: int) -> None:
    import tomllib

    spec = CollapseSpec(data=DataSpec(name=name, train_size=size), train=TrainSpec(lr=lr))
    assert from_dict(CollapseSpec, tomllib.loads(to_toml(spec))) == spec


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trian": {}}, "did you mean train"),
        ({"train": {"lrr": 0.1}}, "train.lrr"),
        ({"train": {"lr": "fast"}}, "train.lr must be float"),
        ({"train": {"loss": "hinge"}}, "cross-entropy, mse"),
        ({"train": 3}, "must be a table"),
        ({"seed": True}, "seed must be int"),
        ({"train": {"lr": float("nan")}}, "finite"),
    ],
)
def test_a_bad_field_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        from_dict(CollapseSpec, values)


def test_broken_toml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text("seed = = 3")
    with pytest.raises(SpecError, match="cannot read a spec"):
        from_toml(CollapseSpec, tmp_path / "spec.toml")


def test_every_field_and_the_content_change_the_digest() -> None:
    base = CollapseSpec()
    seen = {digest(base), digest(base, data="a"), digest(base, data="b")}
    changed = [
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, data=DataSpec(label_noise=0.1)),
        dataclasses.replace(base, train=TrainSpec(lr=0.2)),
    ]
    assert len(seen | {digest(spec) for spec in changed}) == 6
    assert digest(from_dict(CollapseSpec, to_dict(base))) == digest(base)


def test_the_spec_and_the_help_import_no_torch() -> None:
    code = "import sys, nucleate.cli, nucleate.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
