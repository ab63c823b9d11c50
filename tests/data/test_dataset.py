"""The digest names the content; the page shows a data set without trusting its text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nucleate.data import DataError, Dataset


def make(**changes: object) -> Dataset:
    labels = torch.tensor([0, 1, 2, 0])
    made = Dataset(
        name="made",
        train_inputs=torch.arange(8.0).view(4, 2),
        train_labels=torch.tensor([0, 1, 2, 1]),
        clean_train_labels=labels,
        test_inputs=torch.zeros(3, 2),
        test_labels=torch.tensor([0, 1, 2]),
        class_names=("a", "b", "c"),
        superclasses=(0, 1, 1),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_what_follows_from_the_tensors() -> None:
    data = make()
    assert (data.num_classes, data.input_shape) == (3, (2,))
    assert data.corrupted.tolist() == [False, False, False, True]
    assert data.coarse(torch.tensor([2, 0, 1])).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="no coarse groups"):
        make(superclasses=None).coarse(torch.tensor([0]))


def test_digest_sees_everything_but_the_name() -> None:
    same = make().digest
    assert len(same) == 64 and make().digest == same == make(name="other").digest
    bumped = make().train_inputs.clone()
    bumped[3, 1] = torch.nextafter(bumped[3, 1], torch.tensor(100.0))
    changes: list[dict[str, object]] = [
        {"train_inputs": bumped},
        {"train_inputs": make().train_inputs.view(4, 1, 2)},
        {"train_labels": torch.tensor([0, 1, 2, 0])},
        {"clean_train_labels": torch.tensor([0, 1, 2, 1])},
        {"test_inputs": torch.ones(3, 2)},
        {"test_labels": torch.tensor([1, 1, 2])},
        {"class_names": ("a", "b", "d")},
        {"superclasses": None},
        {"input_range": (0.0, 2.0)},
    ]
    digests = {make(**c).digest for c in changes}
    assert len(digests) == len(changes) and same not in digests


def test_digest_does_not_depend_on_memory_layout() -> None:
    turned = make().train_inputs.t().contiguous().t()
    assert not turned.is_contiguous()
    assert make(train_inputs=turned).digest == make().digest


def test_html_escapes_names_from_outside() -> None:
    page = make(name="<script>x</script>", class_names=("<b>", "b", "c"))._repr_html_()
    assert "<script>" not in page and "<b>" not in page
    assert "&lt;script&gt;" in page and "corrupted labels</th><td>1<" in page
