"""Image files in folders: one folder per class, or no classes at all."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from clusterprune.data.dataset import Dataset
from clusterprune.data.decode import EXTENSIONS, is_image_name
from clusterprune.data.split import Split
from clusterprune.data.store import FileStore
from clusterprune.errors import DataError
from clusterprune.files.reading import exists, is_folder

Files = dict[str, list[str]]

_TRAIN = ("train",)


class EmptyClassWarning(UserWarning):
    """A class folder holds no images."""


def check_folder(path: str | Path) -> Path:
    """Return ``path`` with ``~`` expanded, when it is a folder that can be listed.

    Raises
    ------
    DataError
        When it is missing, a file, or may not be read.
    """
    folder = Path(path).expanduser()
    if not exists(folder):
        raise DataError(f"data folder {str(folder)!r} does not exist. Check the path.")
    if not is_folder(folder):
        raise DataError(f"{str(folder)!r} is a file, not a folder. If it is an archive, unpack it and name the folder.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"data folder {str(folder)!r} may not be read. Check its permissions.")
    return folder


def find_images(folder: Path) -> list[str]:
    """Image files below ``folder``, nested ones included, in the order of their names.

    Hidden files and folders are passed over. The order does not depend on the file system.
    """
    found: list[str] = []
    # Strings, not Path objects: ImageNet has 1.3 million files.
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in files if is_image_name(name)]  # noqa: PTH118
    return sorted(found)


def scan_classes(folder: Path) -> Files:
    """Find the images of every class folder in ``folder``; a class without any has an empty list.

    Raises
    ------
    DataError
        When there is no class folder, or none has an image.
    """
    folder = check_folder(folder)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        loose = sum(is_image_name(p.name) for p in folder.iterdir())
        raise DataError(
            f"{str(folder)!r} has no class folders"
            + (f", only {loose} loose images" if loose else "")
            + ". Put the images of each class into a folder named after the class."
        )
    classes = {name: find_images(folder / name) for name in names}
    if not any(classes.values()):
        raise DataError(
            f"no class folder of {str(folder)!r} has an image. Images are the files ending in "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    for name in (name for name, files in classes.items() if not files):
        warnings.warn(
            f"class folder {str(folder / name)!r} has no images and is skipped",
            EmptyClassWarning,
            stacklevel=2,
        )
    return classes


def common_classes(found: dict[Path, Files]) -> tuple[str, ...]:
    """Class names shared by all splits, sorted; those that have no image in any split are left out.

    Raises
    ------
    DataError
        When a split lacks the folder of a class that another has, or the training split (the first
        of several) has no image of one: labels would then mean different things.
    """
    names = sorted({name for files in found.values() for name in files})
    for place, files in found.items():
        missing = [name for name in names if name not in files]
        if missing:
            raise DataError(
                f"{str(place)!r} lacks the class folder(s) {_listing(missing)}, which "
                f"{_listing([str(p) for p in found if p != place])} has. Both need the same "
                "classes."
            )
    used = [name for name in names if any(files[name] for files in found.values())]
    first = next(iter(found))
    unseen = [name for name in used if not found[first][name]]
    if unseen:
        raise DataError(
            f"{str(first)!r} has no images of class {_listing(unseen)}, but the test images have. "
            "Both need the same classes."
        )
    return tuple(used)


def labelled_split(files: Files, classes: Sequence[str], image_size: int | None) -> Split:
    """Split over ``files``, labelled by the position of their class in ``classes``."""
    paths = [path for name in classes for path in files[name]]
    counts = torch.tensor([len(files[name]) for name in classes])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return Split(FileStore(paths), labels, classes, image_size=image_size)


def load_tree(root: Path, name: str, image_size: int | None, test_names: Sequence[str] = ("test", "val")) -> Dataset:
    """Open ``root/train`` and the first of ``root/<test_names>`` that exists; either may be absent.

    Raises
    ------
    DataError
        When both are absent, a split has no images, or their classes differ.
    """
    places: dict[str, Path] = {}
    for key, names in (("train", _TRAIN), ("test", test_names)):
        present = [root / n for n in names if (root / n).is_dir()]
        if present:
            places[key] = present[0]
    if not places:
        wanted = " or ".join(f"{n}/" for n in test_names)
        raise DataError(
            f"{str(root)!r} has no folder train/ and no folder {wanted}. Expected "
            f"train/CLASS/*.jpg and {wanted} likewise, one folder per class."
        )
    found = {place: scan_classes(place) for place in places.values()}
    classes = common_classes(found)
    splits = {key: labelled_split(found[place], classes, image_size) for key, place in places.items()}
    return Dataset(name, classes, splits)


def unlabelled_split(path: str | Path, image_size: int | None) -> Split:
    """Split without labels over every image below a folder.

    Raises
    ------
    DataError
        When the folder cannot be read or has no image.
    """
    folder = check_folder(path)
    paths = find_images(folder)
    if not paths:
        raise DataError(
            f"{str(folder)!r} has no image. Images are the files ending in {', '.join(sorted(EXTENSIONS))}."
        )
    return Split(FileStore(paths), None, image_size=image_size)


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
