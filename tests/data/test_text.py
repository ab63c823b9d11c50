"""Text as bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nucleate.data import load
from nucleate.spec import DataSpec


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_bytes(bytes(range(250)) * 40)
    return str(path)


def test_labels_are_the_next_bytes_and_the_end_is_held_out(book: str) -> None:
    data = load(DataSpec(name=book, context=10))
    whole = torch.tensor(list(range(250)) * 40)
    assert data.train_inputs.shape == (899, 10) and data.test_inputs.shape == (99, 10) and data.num_classes == 256
    torch.testing.assert_close(data.train_inputs.flatten(), whole[:8990])
    torch.testing.assert_close(data.train_labels.flatten(), whole[1:8991])
    torch.testing.assert_close(data.test_inputs[0], whole[9000:9010])


def test_a_size_takes_windows_from_everywhere(book: str) -> None:
    data = load(DataSpec(name=book, context=10, train_size=9, test_size=3))
    starts = (torch.arange(9) * 899 // 9) * 10
    torch.testing.assert_close(data.train_inputs[:, 0], starts % 250)


def test_the_standard_library_is_on_every_machine() -> None:
    data = load(DataSpec(name="python-source", train_size=10, test_size=10))
    assert b"import" in bytes(load(DataSpec(name="python-source")).train_inputs.flatten().to(torch.uint8).tolist())
    assert data.class_names[ord("a")] == "a" and data.class_names[10] == "0x0a"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label_noise": 0.1}, "no label noise"),
        ({"context": 1}, "at least 2"),
        ({"train_size": 10**6}, "1 to 140"),
        ({"name": "absent.txt"}, "cannot read the text"),
    ],
)
def test_refuses(book: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(DataSpec(**{"name": book, **fields}))  # type: ignore[arg-type]
