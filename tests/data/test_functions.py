"""Data from a user's function: what it may give, and what it is told when it gives something else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from loading import get
from nucleate.data import DataError, Dataset


class TestUsersFunction:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        yield
        sys.modules.pop("my_data", None)

    def give(self, body: str, **fields: object) -> Dataset:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        Path("my_data.py").write_text(
            "import numpy as np, torch\nX = np.arange(40.).reshape(20, 2)\nY = np.arange(20) % 2\n\ndef make():\n"
            + lines
        )
        return get("my_data:make", **fields)

    @pytest.mark.parametrize(
        "body",
        [
            "return X, Y",
            "return torch.tensor(X, requires_grad=True), torch.tensor(Y)",
            "return X.tolist(), Y.tolist()",
            "return {'x': X, 'y': Y}",
            "return X[:16], Y[:16], X[16:], Y[16:]",
            "return dict(x_train=X[:16], y_train=Y[:16], x_test=X[16:], y_test=Y[16:])",
            "return X.astype('>f4'), Y.astype('>i2')",
        ],
    )
    def test_what_it_may_return(self, body: str) -> None:
        data = self.give(body)
        assert (len(data.train_labels), len(data.test_labels)) == (16, 4)
        assert data.train_inputs.dtype == torch.float32 and not data.train_inputs.requires_grad
        assert data.input_range == (0.0, 39.0)

    def test_a_dict_may_say_more(self) -> None:
        data = self.give(
            "return {'x': X, 'y': Y, 'class_names': ['left', 'right', 'none'], 'superclasses': [0, 0, 1],\n"
            "        'input_range': (-1, 50), 'name': 'mine'}"
        )
        assert data.class_names == ("left", "right", "none") and data.superclasses == (0, 0, 1)
        assert data.input_range == (-1.0, 50.0) and data.name == "mine"

    def test_a_data_set_passes_through(self) -> None:
        digest = get("blobs").digest
        body = "from nucleate.data import load\nfrom nucleate.spec import DataSpec\nreturn load(DataSpec(name='blobs'))"
        assert self.give(body).digest == digest

    def test_the_users_array_is_not_changed(self) -> None:
        self.give("return X, Y")
        array = np.arange(40.0, dtype=np.float32).reshape(20, 2)
        module = sys.modules["my_data"]
        module.make = lambda: (array, np.arange(20) % 2)  # type: ignore[attr-defined]
        data = get("my_data:make", label_noise=0.5)
        data.train_inputs.zero_()
        assert array[19, 1] == 39.0

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("return X", "returned ndarray; it must return"),
            ("return X, Y, X", "returned 3 values"),
            ("return None", "returned NoneType"),
            ("return {'x': X}", "unknown key 'x'|returned no"),
            ("return {'x': X, 'y': Y, 'extra': 1}", "unknown key 'extra'"),
            ("return {'x_train': X, 'y_train': Y, 'x_test': X}", "come together"),
            ("raise RuntimeError('no disk')", "failed: RuntimeError: no disk"),
            ("return X, Y[:-1]", "20 inputs but 19 labels"),
            ("return X, Y - 1", "labels hold -1; classes are numbered from 0"),
            ("return X, Y + 0.5", "must be whole numbers"),
            ("return X, np.stack([Y, Y], 1)", r"labels have shape \(20, 2\)"),
            ("return X, Y * 1000", "label 1000 with only 20 points"),
            ("return X, Y * 0", "at least two classes"),
            ("X[3, 1] = np.nan\nreturn X, Y", "NaN or infinite values in 1 points, first 3"),
            ("X[7, 0] = 1e60\nreturn X, Y", "NaN or infinite values in 1 points, first 7"),
            ("return X * 0, Y", "must vary"),
            ("return X[:, 0], Y", r"inputs have shape \(20,\)"),
            ("return X[:0], Y[:0]", "there is no value"),
            ("return X[:2], Y[:2]", "too few points"),
            ("return X[:, :0], Y", "there is no value"),
            ("return X * 1j, Y", "must be numbers, not complex"),
            ("return np.array([['a', 'b']] * 20), Y", "must be numbers, not <U1"),
            ("return [[1], [1, 2]], Y", "cannot be read as an array"),
            ("return X, Y, X[:, :1], Y", r"has shape \(2,\),.*a held-out one \(1,\)"),
            ("return {'x': X, 'y': Y, 'class_names': ['one']}", "label 1 but only 1 class names"),
            ("return {'x': X, 'y': Y, 'superclasses': [0]}", "1 superclasses for 2 classes"),
            ("return {'x': X, 'y': Y, 'input_range': 3}", "cannot be used"),
            ("return {'x': X, 'y': Y, 'input_range': (1, 0)}", "must vary"),
        ],
    )
    def test_what_it_may_not(self, body: str, says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            self.give(body)
        assert "my_data:make" in str(caught.value)

    def test_a_function_that_is_not_there(self) -> None:
        for name, says in (("no_module_x:f", "cannot import"), ("math:nothing", "has no 'nothing'")):
            with pytest.raises(DataError, match=says):
                get(name)
        Path("my_data.py").write_text("def broken(:\n")
        with pytest.raises(DataError, match="SyntaxError"):
            get("my_data:make")
