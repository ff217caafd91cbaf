"""Detection data in the format of PASCAL VOC: a picture each in JPEGImages/, its objects in Annotations/*.xml."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import torch

from clusterprune.data.boxes import Boxes, Faults, Named, boxes_in, check_any
from clusterprune.data.dataset import Dataset
from clusterprune.data.decode import explain, is_image_name, shape_of
from clusterprune.data.split import Split
from clusterprune.data.store import FileStore
from clusterprune.data.tree import check_folder
from clusterprune.errors import DataError
from clusterprune.files.reading import ReadError, read_bytes, read_text

DETECTOR_SIZE = 300
"""Height and width in pixels that images are brought to where none is asked for: that of SSD300."""

TEST_SHARE = 0.2
"""Of the images, where no lists say which are for testing."""

_MAX_XML_BYTES = 1 << 22
_LISTS = Path("ImageSets", "Main")


class Annotated(NamedTuple):
    """An image with its size in pixels and its objects."""

    path: str
    height: int
    width: int
    objects: list[Named]


def load_voc(root: Path, image_size: int | None) -> Dataset:
    """Open a folder with JPEGImages/ and Annotations/, or one that holds several of them, such as VOC2007 and VOC2012.

    - *Splits* are the lists in ImageSets/Main. With a test.txt, training takes trainval.txt (or train.txt and val.txt)
      of all folders, testing all test.txt; without one, train.txt and val.txt. Without lists, a fifth of the images,
      always the same, is for testing.
    - *Classes* are the names in the annotations, sorted; or, if there is a classes.txt, one a line, those in it.
    - Images are stretched to the size that the model reads. Corners count pixels from 1, as VOC's do.

    Images or annotations that cannot be read, boxes beyond their image and classes that are not listed are counted in
    an :class:`~clusterprune.data.boxes.AnnotationWarning`; an image without objects is background.

    Raises
    ------
    DataError
        When the folder is missing, is not laid out like this, or holds no objects.
    """
    name, folders = f"voc:{root}", _folders(check_folder(root))
    faults = Faults()
    splits = {key: list(_annotated(files, faults)) for key, files in _files(folders, faults).items() if files}
    return dataset_of(name, splits, _listed(root), image_size, faults)


def dataset_of(
    name: str, splits: dict[str, list[Annotated]], classes: list[str] | None, image_size: int | None, faults: Faults
) -> Dataset:
    """Return a data set of annotated images, having warned of all faults.

    Parameters
    ----------
    classes
        In order; None for those that there are, sorted.
    """
    if classes is None:
        classes = sorted({one.name for images in splits.values() for image in images for one in image.objects})
    numbers = {one: at for at, one in enumerate(classes)}
    boxes: dict[str, list[Boxes]] = {
        key: [
            boxes_in(image.objects, image.height, image.width, numbers, Path(image.path).name, faults)
            for image in images
        ]
        for key, images in splits.items()
    }
    faults.warn(name)
    check_any(boxes, name)
    size = image_size or DETECTOR_SIZE
    made = {
        key: Split(
            FileStore([image.path for image in images], whole=True), None, classes, image_size=size, boxes=boxes[key]
        )
        for key, images in splits.items()
    }
    return Dataset(name, tuple(classes), made)


def annotated(path: Path, objects: list[Named], faults: Faults) -> Annotated | None:
    """Return an image with its objects; None, counted, where it cannot be read."""
    try:
        _, height, width = shape_of(str(path))
    except Exception as error:  # damaged files make Pillow raise nearly anything
        faults.add("images that cannot be read, left out", f"{path.name} {explain(error)}")
        return None
    return Annotated(str(path), height, width, objects)


def _folders(root: Path) -> list[Path]:
    """Return the folders that hold annotations: the root, or those in it or in its VOCdevkit, in order."""
    for place in (root, root / "VOCdevkit"):
        found = [one for one in (place, *(sorted(place.iterdir()) if place.is_dir() else ())) if _is_voc(one)]
        if found:
            return found
    raise DataError(
        f"{str(root)!r} has no folder JPEGImages/ and no Annotations/, nor does a folder in it. Expected pictures in "
        "JPEGImages/, a file NAME.xml for each in Annotations/, and lists of names in ImageSets/Main/train.txt and "
        "val.txt or test.txt."
    )


def _is_voc(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _listed(root: Path) -> list[str] | None:
    """Return the classes of classes.txt, where there is one."""
    try:
        lines = [line.strip() for line in read_text(root / "classes.txt").splitlines()]
    except ReadError as error:
        if error.missing:
            return None
        raise DataError(f"{str(root / 'classes.txt')!r} {error}; give one class a line") from error
    names = [line for line in lines if line]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{str(root / 'classes.txt')!r} must name each class once, one a line")
    return names


def _files(folders: list[Path], faults: Faults) -> dict[str, list[tuple[Path, Path]]]:
    """Return the annotation and the image of every example, by split."""
    lists = [{file.stem: _names(file) for file in sorted((one / _LISTS).glob("*.txt"))} for one in folders]
    tested = any("test" in found for found in lists)
    splits: dict[str, list[tuple[Path, Path]]] = {"train": [], "test": []}
    for folder, found in zip(folders, lists, strict=True):
        images = {file.stem: file for file in sorted((folder / "JPEGImages").iterdir()) if is_image_name(file.name)}
        if tested:
            train = found.get("trainval", found.get("train", []) + found.get("val", []))
            chosen = {"train": train, "test": found.get("test", [])}
        elif "train" in found or "val" in found:
            chosen = {"train": found.get("train", []), "test": found.get("val", [])}
        elif "trainval" in found:
            chosen = _shared(found["trainval"])
        else:
            chosen = _shared(sorted(file.stem for file in (folder / "Annotations").glob("*.xml")))
        for key, names in chosen.items():
            for one in names:
                if one in images:
                    splits[key].append((folder / "Annotations" / f"{one}.xml", images[one]))
                else:
                    faults.add("names without an image, left out", one)
    return splits


def _shared(names: list[str]) -> dict[str, list[str]]:
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    tested = set(order[: round(TEST_SHARE * len(names))])
    return {
        "train": [one for at, one in enumerate(names) if at not in tested],
        "test": [one for at, one in enumerate(names) if at in tested],
    }


def _names(file: Path) -> list[str]:
    try:
        # Lists of one class have a second column; those that matter here do not.
        return [line.split()[0] for line in read_text(file).splitlines() if line.strip()]
    except ReadError as error:
        raise DataError(f"list {str(file)!r} {error}; write one name of an image a line") from error


def _annotated(files: list[tuple[Path, Path]], faults: Faults) -> Iterator[Annotated]:
    for annotation, image in files:
        try:
            objects = read_objects(annotation)
        except (ReadError, ValueError) as error:
            faults.add("annotations that cannot be read, left out with their image", f"{annotation.name} {error}")
            continue
        if (found := annotated(image, objects, faults)) is not None:
            yield found


def read_objects(path: Path) -> list[Named]:
    """Return the objects of an annotation file.

    Raises
    ------
    ReadError, ValueError
        If it cannot be read, is no XML, or an object lacks its name or a corner.
    """
    content = read_bytes(path, _MAX_XML_BYTES)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # which could stand for more than fits in the memory
        raise ValueError("declares a document type, which no annotation needs")
    try:
        tree = ET.fromstring(content)  # noqa: S314
    except ET.ParseError as error:
        raise ValueError(f"is no XML: {error}") from error
    return [_object(one) for one in tree.iter("object")]


def _object(found: ET.Element) -> Named:
    name = (found.findtext("name") or "").strip()
    if not name:
        raise ValueError("has an object without a name")
    box = found.find("bndbox")
    texts = [None if box is None else box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text or "none") for text in texts)
        if not all(abs(x) < 1e9 for x in (left, top, right, bottom)):
            raise ValueError  # noqa: TRY301  (inf and nan, too)
    except ValueError:
        raise ValueError(f"has a {name!r} whose bndbox lacks a number") from None
    return Named(name, left - 1, top - 1, right, bottom, (found.findtext("difficult") or "0").strip() == "1")
