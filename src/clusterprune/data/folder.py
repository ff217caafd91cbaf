"""Any folder of images: ``train/`` and ``test/`` or ``val/``, one folder per class."""

from pathlib import Path

from clusterprune.data.dataset import Dataset
from clusterprune.data.tree import check_folder, load_tree


def load_folder(root: Path, image_size: int | None) -> Dataset:
    """Open ``root``; where both test/ and val/ exist, test/ is read.

    Classes are numbered in the order of their names. Without ``image_size`` the images must all
    have the same size.

    Raises
    ------
    DataError
        When the folder is missing, has no classes, or its splits have different classes.
    """
    return load_tree(check_folder(root), f"folder:{root}", image_size)
