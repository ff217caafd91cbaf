"""Classes of a folder find the outputs of a model that knows more of them."""

import json
from pathlib import Path

import pytest
import torch

from clusterprune.data import Dataset, Split
from clusterprune.data.outputs import for_outputs, imagenet_classes
from clusterprune.errors import DataError

IMAGENETTE = (
    "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257"
).split()
INDICES = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def dataset(classes: list[str]) -> Dataset:
    labels = torch.arange(2 * len(classes)) % len(classes)
    images = torch.randint(0, 256, (len(labels), 3, 4, 4), dtype=torch.uint8)
    return Dataset("folder:photos", tuple(classes), {"test": Split.from_tensors(images, labels, classes)})


def test_ten_folders_of_imagenet_find_their_outputs() -> None:
    found = for_outputs(dataset(IMAGENETTE), 1000)
    assert found.test.labels is not None
    assert found.test.labels.tolist() == INDICES * 2
    assert len(found.classes) == 1000
    assert found.classes[217] == "n02102040"
    assert found.test.classes == found.classes
    assert len(imagenet_classes()) == 1000


def test_data_with_a_class_for_each_output_stay_as_they_are() -> None:
    given = dataset(["cat", "dog"])
    assert for_outputs(given, 2) is given


@pytest.mark.parametrize("content", ["bird\ndog\ncat\n", json.dumps({"dog": 1, "cat": 2})])
def test_a_file_says_which_output_is_which(content: str, tmp_path: Path) -> None:
    path = tmp_path / "classes"
    path.write_text(content)
    found = for_outputs(dataset(["cat", "dog"]), 3, str(path))
    assert found.test.labels is not None
    assert found.test.labels.tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("cat\n", "has no 'dog'"),
        ("cat\ndog\ncat\n", "names 'cat' twice"),
        ('{"cat": 0, "dog": 0}', "the same output"),
        ('{"cat": 0, "dog": 7}', "names output 7"),
        ('{"cat": "first"}', "must hold one class a line"),
        ('{"cat": ', "not JSON|is no JSON|JSON"),
    ],
)
def test_files_that_do_not_fit_are_refused(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "classes"
    path.write_text(content)
    with pytest.raises(DataError, match=says):
        for_outputs(dataset(["cat", "dog"]), 3, str(path))


def test_other_classes_are_not_guessed() -> None:
    with pytest.raises(DataError, match=r"1000 outputs, but data=.* has 2 classes"):
        for_outputs(dataset(["n01440764", "hamster"]), 1000)
    with pytest.raises(DataError, match="has no 'hamster'"):
        for_outputs(dataset(["n01440764", "hamster"]), 1000, "imagenet")
