"""CIFAR-10 and CIFAR-100: the official binary files, or folders of images.

Format of the binary version (https://www.cs.toronto.edu/~kriz/cifar.html): records of one
(CIFAR-10) or two (CIFAR-100: coarse, fine) label bytes and 3 x 32 x 32 pixel bytes, channel by
channel, row by row. The "python version" holds pickles, which can run code when they are opened; it
is never read.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clusterprune.data.dataset import Dataset
from clusterprune.data.resize import check_size
from clusterprune.data.split import Split
from clusterprune.data.store import MemoryStore
from clusterprune.data.tree import check_folder, load_tree
from clusterprune.errors import DataError
from clusterprune.files.reading import ReadError, read_bytes

_PIXELS = 3 * 32 * 32
_MAX_BATCH_BYTES = 1 << 29
"""Of one binary file; the largest of the official ones, train.bin, has 154 million bytes."""
_MAX_NAMES_BYTES = 1 << 16


@dataclass(frozen=True)
class _Format:
    """Names and layout of one of the two data sets."""

    name: str
    classes: int
    label_bytes: int
    folder: str
    names: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    pickled: tuple[str, ...]


_CIFAR10 = _Format(
    name="cifar10",
    classes=10,
    label_bytes=1,
    folder="cifar-10-batches-bin",
    names="batches.meta.txt",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    pickled=("data_batch_1", "cifar-10-batches-py"),
)
_CIFAR100 = _Format(
    name="cifar100",
    classes=100,
    label_bytes=2,
    folder="cifar-100-binary",
    names="fine_label_names.txt",
    train=("train.bin",),
    test=("test.bin",),
    pickled=("meta", "cifar-100-python"),
)


def load_cifar10(root: Path, image_size: int | None) -> Dataset:
    """Open CIFAR-10: ``cifar-10-batches-bin`` or its parent, or train/ and test/ of images.

    Raises
    ------
    DataError
        When the folder holds the pickled version or none, or a file is missing or damaged.
    """
    return _load(root, image_size, _CIFAR10)


def load_cifar100(root: Path, image_size: int | None) -> Dataset:
    """Open CIFAR-100, fine labels: ``cifar-100-binary`` or its parent, or folders of images.

    Raises
    ------
    DataError
        When the folder holds the pickled version or none, or a file is missing or damaged.
    """
    return _load(root, image_size, _CIFAR100)


def _load(root: Path, image_size: int | None, form: _Format) -> Dataset:
    root = check_folder(root)
    spec = f"{form.name}:{root}"
    for folder in (root, root / form.folder):
        if any((folder / name).is_file() for name in (*form.train, *form.test)):
            return _load_binary(folder, spec, check_size(image_size), form)
    if (root / "train").is_dir() or (root / "test").is_dir():
        dataset = load_tree(root, spec, image_size)
        if len(dataset.classes) != form.classes:
            raise DataError(
                f"{str(root)!r} has {len(dataset.classes)} class folders, but {form.name} has "
                f"{form.classes} classes. Open another data set as folder:{root}."
            )
        return dataset
    if any((root / name).exists() for name in form.pickled):
        raise DataError(
            f"{str(root)!r} holds the python version of {form.name}, which is pickled: opening a "
            "pickle can run any code, so clusterprune never does. Use the binary version "
            f"({form.folder}, from https://www.cs.toronto.edu/~kriz/cifar.html) or a folder of "
            "images (train/CLASS/*.png, test/ likewise)."
        )
    raise DataError(
        f"{str(root)!r} holds neither the binary version of {form.name} ({', '.join(form.train)}, "
        "…) nor train/ and test/ with one folder per class. Check the path."
    )


def _load_binary(folder: Path, spec: str, image_size: int | None, form: _Format) -> Dataset:
    classes = _class_names(folder, form)
    splits: dict[str, Split] = {}
    for key, names in (("train", form.train), ("test", form.test)):
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataError(f"{str(folder)!r} lacks {', '.join(missing)}. Unpack the archive again.")
        parts = [_read_batch(folder / name, form) for name in names]
        images = torch.cat([images for images, _ in parts])
        labels = torch.cat([labels for _, labels in parts])
        splits[key] = Split(MemoryStore(images), labels, classes, image_size=image_size)
    return Dataset(spec, classes, splits)


def _class_names(folder: Path, form: _Format) -> tuple[str, ...]:
    """Class names from the file that comes with the batches; numbers when it is absent."""
    path = folder / form.names
    if not path.is_file():
        return tuple(str(i) for i in range(form.classes))
    try:
        names = tuple(read_bytes(path, _MAX_NAMES_BYTES).decode(errors="replace").split())
    except ReadError as error:
        raise DataError(f"{str(path)!r} {error}. Unpack the archive again.") from error
    if len(names) != form.classes:
        raise DataError(
            f"{str(path)!r} names {len(names)} classes instead of {form.classes}. Unpack the archive again."
        )
    return names


def _read_batch(path: Path, form: _Format) -> tuple[Tensor, Tensor]:
    """Images ``uint8`` (n, 3, 32, 32) and int64 labels (n,) of one binary file."""
    try:
        data = np.frombuffer(bytearray(read_bytes(path, _MAX_BATCH_BYTES)), dtype=np.uint8)
    except ReadError as error:
        raise DataError(f"{str(path)!r} {error}. Unpack the archive again.") from error
    record = form.label_bytes + _PIXELS
    if not len(data) or len(data) % record:
        raise DataError(
            f"{str(path)!r} is damaged: its {len(data)} bytes are not a whole number of records of "
            f"{record} bytes. Unpack the archive again."
        )
    rows = torch.from_numpy(data).view(-1, record)
    labels = rows[:, form.label_bytes - 1].long()
    if int(labels.max()) >= form.classes:
        raise DataError(
            f"{str(path)!r} has label {int(labels.max())}, but {form.name} has {form.classes} "
            "classes. The file is damaged, or belongs to another data set."
        )
    return rows[:, form.label_bytes :].reshape(-1, 3, 32, 32), labels
