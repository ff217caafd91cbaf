"""Data with boxes, as VOC and COCO lay them out, and what people's own files get wrong."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from pictures import picture
from torch import Tensor

from clusterprune import data
from clusterprune.data.boxes import AnnotationWarning
from clusterprune.errors import DataError

Box = tuple[str, float, float, float, float]


def annotation(boxes: Sequence[Box], more: str = "") -> str:
    objects = "".join(
        f"<object><name>{name}</name>{more}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for name, a, b, c, d in boxes
    )
    return f"<annotation>{objects}</annotation>"


def voc(root: Path, images: Mapping[str, Sequence[Box]], lists: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write images of 20 x 10 pixels, width by height."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for seed, (name, boxes) in enumerate(images.items()):
        picture(seed, 10, 20).save(root / f"JPEGImages/{name}.png")
        (root / f"Annotations/{name}.xml").write_text(annotation(boxes))
    for name, names in (lists or {}).items():
        (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(names))
    return root


CAT: Box = ("cat", 1, 1, 10, 5)
DOG: Box = ("dog", 11, 6, 20, 10)


def test_images_are_stretched_whole_and_boxes_are_fractions_of_them(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": [CAT, DOG], "b": [DOG]}, {"train": ["a"], "val": ["b"]})
    (root / "Annotations/a.xml").write_text(annotation([CAT, DOG], "<difficult>1</difficult>"))
    found = data.load(f"voc:{root}", image_size=32)
    assert found.classes == ("cat", "dog")
    assert found.train.shape == (3, 32, 32)
    assert found.train.boxes is not None
    (boxes,) = found.train.boxes
    assert boxes.corners.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    assert boxes.labels.tolist() == [0, 1]
    assert boxes.difficult.tolist() == [True, True]
    assert found.test.boxes is not None
    assert found.test.boxes[0].difficult.tolist() == [False]
    whole = torch.tensor(list(picture(0, 10, 20).resize((32, 32), 2).tobytes())).reshape(32, 32, 3).permute(2, 0, 1)
    assert torch.equal(found.train.images()[0].int(), whole.int())
    assert data.load(f"voc:{root}").train.shape == (3, 300, 300)


@pytest.mark.parametrize(
    ("lists", "train", "test"),
    [
        ({"train": "a", "val": "b"}, "a", "b"),
        ({"train": "a", "val": "b", "trainval": "ab", "test": "c"}, "ab", "c"),
        ({"train": "a", "val": "b", "test": "c"}, "ab", "c"),
        ({"train": "ab"}, "ab", ""),
    ],
)
def test_the_lists_say_what_is_tested(lists: dict[str, str], train: str, test: str, tmp_path: Path) -> None:
    root = voc(tmp_path, dict.fromkeys("abc", (CAT,)), lists)
    splits = data.load(f"voc:{root}").splits
    assert {key: len(split) for key, split in splits.items()} == {
        key: len(names) for key, names in (("train", train), ("test", test)) if names
    }


def test_several_years_are_taken_together_and_only_one_needs_a_test(tmp_path: Path) -> None:
    devkit = tmp_path / "VOCdevkit"
    voc(devkit / "VOC2007", dict.fromkeys("abc", (CAT,)), {"trainval": "ab", "test": "c"})
    voc(devkit / "VOC2012", dict.fromkeys("de", (DOG,)), {"train": "d", "val": "e"})
    found = data.load(f"voc:{tmp_path}")
    assert (len(found.train), len(found.test)) == (4, 1)


def test_without_lists_a_fifth_is_tested_always_the_same(tmp_path: Path) -> None:
    root = voc(tmp_path, {f"{n:02}": [CAT] for n in range(10)})
    first, second = (data.load(f"voc:{root}", image_size=16) for _ in range(2))
    assert (len(first.train), len(first.test)) == (8, 2)
    assert torch.equal(first.test.images(), second.test.images())


def test_what_is_wrong_with_annotations_is_counted_and_left_out(tmp_path: Path) -> None:
    outside: Box = ("cat", -5, 3, 10, 40)
    images = {
        "good": [CAT, DOG],
        "empty": [],
        "outside": [outside, ("cat", 30, 3, 40, 5), ("dog", 9, 4, 5, 8)],
        "broken": [CAT],
        "bomb": [CAT],
        "cornerless": [CAT],
        "unreadable": [CAT],
        "plain": [("horse", 1, 1, 5, 5)],
    }
    root = voc(tmp_path, images, {"train": [*images, "missing"], "val": ["good"]})
    (root / "classes.txt").write_text("dog\ncat\n")
    (root / "Annotations/broken.xml").write_text("<annotation><object>")
    (root / "Annotations/bomb.xml").write_text('<!DOCTYPE x [<!ENTITY a "a">]>' + annotation([CAT]))
    (root / "Annotations/cornerless.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    (root / "JPEGImages/unreadable.png").write_bytes(b"no picture")
    with pytest.warns(AnnotationWarning) as warned:
        found = data.load(f"voc:{root}", image_size=16)
    assert len(warned) == 1
    text = str(warned[0].message)
    for told in (
        r"names without an image, left out: 1 (missing)",
        r"annotations that cannot be read, left out with their image: 3",
        r"broken.xml is no XML",
        r"bomb.xml declares a document type",
        r"cornerless.xml has a 'cat' whose bndbox lacks a number",
        r"images that cannot be read, left out: 1 (unreadable.png is not an image",
        r"boxes beyond the image, cut off there: 1 (outside.png)",
        r"boxes without area in the image, left out: 2 (outside.png; outside.png)",
        r"boxes of classes that are not listed, left out: 1 ('horse' in plain.png)",
    ):
        assert told in text
    assert found.classes == ("dog", "cat")
    boxes = found.train.boxes
    assert boxes is not None
    assert [one.labels.tolist() for one in boxes] == [[1, 0], [], [1], []]
    torch.testing.assert_close(boxes[2].corners, torch.tensor([[0, 0.2, 0.5, 1]]))


def test_a_picture_that_breaks_off_is_grey_and_shows_nothing(tmp_path: Path) -> None:
    root = voc(tmp_path, dict.fromkeys("abc", (CAT,)), {"train": "abc"})
    file = root / "JPEGImages/b.png"
    file.write_bytes(file.read_bytes()[:300])
    split = data.load(f"voc:{root}", image_size=16).train
    with pytest.warns(data.CorruptImageWarning):
        images = split.images()
    assert (images[1] == 127).all()
    assert split.boxes is not None
    assert [len(one.labels) for one in split.boxes] == [1, 0, 1]
    part = split.subset([2, 1]).boxes
    assert part is not None
    assert [len(one.labels) for one in part] == [1, 0]


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_another_layout_says_what_is_expected(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"JPEGImages/|instances_train"):
        data.load(f"{kind}:{tmp_path}")


def test_data_without_a_box_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": [], "b": []}, {"train": "ab"})
    with pytest.raises(DataError, match="the 2 train images that can be read hold no box"):
        data.load(f"voc:{root}")
    (root / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match="must name each class once"):
        data.load(f"voc:{root}")


def instances(images: Sequence[str], **more: object) -> str:
    return json.dumps(
        {
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
            "images": [{"id": 10 + at, "file_name": name} for at, name in enumerate(images)],
            "annotations": [
                {"image_id": 10, "category_id": 7, "bbox": [5, 0, 10, 5], "iscrowd": 1},
                {"image_id": 10, "category_id": 3, "bbox": [0, 0, 20, 10]},
            ],
        }
        | more
    )


def test_coco_in_both_of_its_layouts(tmp_path: Path) -> None:
    def corners(split: data.Split) -> tuple[Tensor, list[int], list[bool]]:
        assert split.boxes is not None
        first = split.boxes[0]
        return first.corners, first.labels.tolist(), first.difficult.tolist()

    for layout in ("official", "beside"):
        root = tmp_path / layout
        for name in ("train2017", "val2017"):
            (root / name).mkdir(parents=True)
            picture(1, 10, 20).save(root / name / "a.png")
            picture(2, 10, 20).save(root / name / "b.png")
            file = root / f"annotations/instances_{name}.json" if layout == "official" else root / name
            if layout == "official":
                file.parent.mkdir(exist_ok=True)
            file = file if layout == "official" else file / "_annotations.coco.json"
            file.write_text(instances(["a.png", "b.png"]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = data.load(f"coco:{root}", image_size=16)
        assert found.classes == ("cat", "dog")
        assert (len(found.train), len(found.test)) == (2, 2)
        where, labels, difficult = corners(found.train)
        torch.testing.assert_close(where, torch.tensor([[0.25, 0, 0.75, 0.5], [0, 0, 1, 1]]))
        assert (labels, difficult) == ([1, 0], [True, False])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "fetch the file again"),
        ("[]", "are not COCO's instances"),
        (instances(["../../a.png"]), "leads out of the folder"),
        (instances([]), "KeyError: 10"),
        (instances(["a.png"], annotations=[{"image_id": 10, "category_id": 3, "bbox": [1]}]), "ValueError"),
    ],
)
def test_files_that_are_not_coco_s_are_named(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(content)
    with pytest.raises(DataError, match=told):
        data.load(f"coco:{tmp_path}")
