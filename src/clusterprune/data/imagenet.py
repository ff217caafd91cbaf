"""ImageNet as usually unpacked: ``train/`` and ``val/``, a folder per class (``n01440764``, …)."""

from pathlib import Path

from clusterprune.data.dataset import Dataset
from clusterprune.data.tree import check_folder, load_tree

#: Photos differ in size, so some size is needed; this is the one that accuracies are quoted at.
DEFAULT_SIZE = 224


def load_imagenet(root: Path, image_size: int | None) -> Dataset:
    """Open ``root``; ``test`` is the validation set, the only one whose labels are public.

    Classes are numbered in the order of their WordNet ids, as in every published model.

    Raises
    ------
    DataError
        When the folder is missing, has no classes, or its splits have different classes.
    """
    size = DEFAULT_SIZE if image_size is None else image_size
    return load_tree(check_folder(root), f"imagenet:{root}", size, test_names=("val",))
