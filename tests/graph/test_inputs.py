"""Images are taken in every form that people have them in, and nothing else is."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from clusterprune.errors import ArgumentError
from clusterprune.graph.inputs import gather

X = torch.arange(10 * 3 * 4 * 4, dtype=torch.float32).reshape(10, 3, 4, 4)
Y = torch.arange(10)
EXAMPLE = [X[:1]]


def generator() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from zip(X.split(4), Y.split(4), strict=True)


class Pictures(Dataset[Any]):
    """Items that are mappings."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": X[at], "labels": Y[at]}


FORMS: dict[str, Any] = {
    "a tensor": X,
    "images and labels": (X, Y),
    "a list of batches": [X[:4], X[4:8], X[8:]],
    "a list of batches with labels": list(generator()),
    "a generator": generator(),
    "a loader": DataLoader(TensorDataset(X, Y), batch_size=4),
    "a loader of mappings": DataLoader(Pictures(), batch_size=4),
    "a list of single images": list(X),
    "one of each input": [X],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_images(form: str) -> None:
    (found,) = gather(FORMS[form], EXAMPLE)
    assert found.equal(X)


def test_items_of_a_data_set_are_drawn_by_the_seed() -> None:
    for dataset in (TensorDataset(X, Y), Pictures()):
        one, again, other = (gather(dataset, EXAMPLE, limit=6, seed=seed)[0] for seed in (0, 0, 1))
        assert len(one) == 6
        assert one.equal(again)
        assert not one.equal(other)
        assert {int(image[0, 0, 0]) for image in one} <= {int(image[0, 0, 0]) for image in X}


def test_no_more_is_read_than_is_wanted() -> None:
    read = 0

    def endless() -> Iterator[torch.Tensor]:
        nonlocal read
        while True:
            read += 1
            yield X[:4]

    assert len(gather(endless(), EXAMPLE, limit=10)[0]) == 10
    assert read == 3


def test_a_network_of_two_inputs() -> None:
    other = torch.zeros(10, 7)
    examples = [X[:1], other[:1]]
    for form in ((X, other), [X, other], [(X[:5], other[:5]), (X[5:], other[5:])], (X, other, Y)):
        one, two = gather(form, examples)
        assert one.equal(X)
        assert two.equal(other)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ("photos/", "images='?photos|images=str|but got"),
        ([], "holds no batch"),
        (5, "must be a tensor"),
        ({"x": X}, "must be a tensor"),
        ([["a", "b"]], "a batch of tensors is wanted"),
        ([{"picture": X}], "does not say where its images are"),
        ([Y], "for each image"),
    ],
)
def test_what_holds_no_images_is_refused(images: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        gather(images, EXAMPLE)
