"""Detection data in the format of COCO: images in folders, and all their objects in one JSON file per split."""

from pathlib import Path
from typing import Any

from clusterprune.data.boxes import Faults, Named
from clusterprune.data.dataset import Dataset
from clusterprune.data.tree import check_folder
from clusterprune.data.voc import Annotated, annotated, dataset_of
from clusterprune.errors import DataError
from clusterprune.files.reading import ReadError, parse_json, read_text

_MAX_JSON_BYTES = 1 << 30
"""Largest file of instances; that of COCO's training images has 450 million bytes."""

_TEST = ("test", "val", "valid")
"""Splits that are tested on, the first first."""


def load_coco(root: Path, image_size: int | None) -> Dataset:
    """Open a folder with annotations/instances_NAME.json and NAME/, or with NAME/_annotations.coco.json beside images.

    NAME begins with train for the training images, with test or val for those of the test; either may be absent, and
    where both test and val have annotations, test is read. Classes are the categories, in the order of their numbers.
    Images are stretched to the size that the model reads. Crowds count as difficult. What is wrong with annotations is
    handled as :func:`clusterprune.data.voc.load_voc` does.

    Raises
    ------
    DataError
        When the folder is missing, is not laid out like this, or a file is not COCO's instances.
    """
    root = check_folder(root)
    name, faults = f"coco:{root}", Faults()
    splits: dict[str, list[Annotated]] = {}
    classes: list[str] | None = None
    for key, file in _instances(root).items():
        found, images = _read(file)
        if classes not in (None, found):
            raise DataError(f"data={name!r}: {file.name!r} has other categories than the file of the other split")
        classes = found
        places = _places(root, file)
        splits[key] = []
        for image_name, objects in images:
            path = next((place / image_name for place in places if (place / image_name).is_file()), None)
            if path is None:
                faults.add("names without an image, left out", image_name)
            elif (one := annotated(path, objects, faults)) is not None:
                splits[key].append(one)
    return dataset_of(name, splits, classes, image_size, faults)


def _instances(root: Path) -> dict[str, Path]:
    files = sorted((root / "annotations").glob("instances_*.json"))
    named = [(file.stem.removeprefix("instances_"), file) for file in files]
    named += [(file.parent.name, file) for file in sorted(root.glob("*/_annotations.coco.json"))]
    found: dict[str, Path] = {}
    for key, beginnings in (("train", ("train",)), ("test", _TEST)):
        for beginning in beginnings:
            matching = [file for stem, file in named if stem.startswith(beginning)]
            if matching:
                found.setdefault(key, matching[0])
    if not found:
        raise DataError(
            f"{str(root)!r} has no annotations/instances_train*.json, no instances_val*.json, and no folder with an "
            "_annotations.coco.json. Name the folder that holds annotations/ and the images' folders."
        )
    return found


def _places(root: Path, file: Path) -> list[Path]:
    """Return where the images of a file may be."""
    stem = file.stem.removeprefix("instances_")
    return (
        [file.parent] if stem == "_annotations.coco" else [root / stem, root / "images" / stem, root / "images", root]
    )


def _read(file: Path) -> tuple[list[str], list[tuple[str, list[Named]]]]:
    """Return the classes, and the objects of every image by the name of its file."""
    try:
        content = parse_json(read_text(file, _MAX_JSON_BYTES))
    except ReadError as error:
        raise DataError(f"annotations {str(file)!r}: {error}; fetch the file again") from error
    try:
        categories = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        images = {one["id"]: (_plain_name(one["file_name"]), list[Named]()) for one in content["images"]}
        for one in content["annotations"]:
            images[one["image_id"]][1].append(_object(one, categories))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"annotations {str(file)!r} are not COCO's instances ({type(error).__name__}: {error}); expected lists of "
            "images (id, file_name), categories (id, name) and annotations (image_id, category_id, bbox)"
        ) from error
    # Some tools write a category 0 that names the data set; it stands above the others and has no objects.
    above = {one["id"] for one in content["categories"] if one["id"] == 0 and one.get("supercategory") == "none"}
    above -= {one["category_id"] for one in content["annotations"]}
    return [categories[at] for at in sorted(categories) if at not in above], list(images.values())


def _object(one: dict[str, Any], categories: dict[int, str]) -> Named:
    left, top, width, height = (float(x) for x in one["bbox"])
    name = categories.get(one["category_id"], f"category {one['category_id']}")
    return Named(name, left, top, left + width, top + height, bool(one.get("iscrowd", 0)))


def _plain_name(name: str) -> str:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name {name!r} leads out of the folder")
    return name
