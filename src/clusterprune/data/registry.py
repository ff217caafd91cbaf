"""Opening a data set by its spec.

To add a source: write ``load_x(root, image_size) -> Dataset`` in a file of its own and enter it
below.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clusterprune.data.cifar import load_cifar10, load_cifar100
from clusterprune.data.coco import load_coco
from clusterprune.data.dataset import Dataset
from clusterprune.data.digits import load_digits
from clusterprune.data.folder import load_folder
from clusterprune.data.imagenet import load_imagenet
from clusterprune.data.resize import check_size
from clusterprune.data.split import Split
from clusterprune.data.tree import unlabelled_split
from clusterprune.data.voc import load_voc
from clusterprune.errors import ArgumentError


class _Source(NamedTuple):
    load: Callable[[Path, int | None], Dataset]
    needs_folder: bool


_SOURCES: dict[str, _Source] = {
    "digits": _Source(load_digits, needs_folder=False),
    "cifar10": _Source(load_cifar10, needs_folder=True),
    "cifar100": _Source(load_cifar100, needs_folder=True),
    "imagenet": _Source(load_imagenet, needs_folder=True),
    "folder": _Source(load_folder, needs_folder=True),
    "voc": _Source(load_voc, needs_folder=True),
    "coco": _Source(load_coco, needs_folder=True),
}


def sources() -> list[str]:
    """List the accepted specs, such as ``cifar10:DIR``."""
    return [f"{name}:DIR" if source.needs_folder else name for name, source in _SOURCES.items()]


def load(spec: str, *, image_size: int | None = None) -> Dataset:
    """Open a data set.

    Parameters
    ----------
    spec
        ``digits`` (embedded), ``cifar10:DIR``, ``cifar100:DIR``, ``imagenet:DIR`` (train/ and val/)
        or ``folder:DIR`` (train/, and test/ or val/; one folder per class). A folder may lack
        either split. With boxes: ``voc:DIR`` and ``coco:DIR``, see :func:`clusterprune.data.voc.load_voc` and
        :func:`clusterprune.data.coco.load_coco`.
    image_size
        Bring every image to this height and width: shorter side resized, centre cut out, with the
        margin of the ImageNet evaluation convention (``size * 256 / 224``) from 96 pixels on. None
        keeps the images' own size (ImageNet: 224). Images with boxes are stretched to it whole; None is 300.

    Raises
    ------
    ArgumentError
        When the spec is not one of these, or ``image_size`` is below 1.
    DataError
        When the folder is missing or is not laid out as described.
    """
    check_size(image_size)
    name, colon, folder = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    source = _SOURCES.get(name)
    if source is None:
        raise ArgumentError(f"data={spec!r} is not known. Accepted: {', '.join(sources())}.")
    if source.needs_folder and not folder:
        raise ArgumentError(f"data={spec!r} names no folder. Write {name}:DIR.")
    if colon and not source.needs_folder:
        raise ArgumentError(f"data={spec!r} takes no folder. Write {name}.")
    return source.load(Path(folder), image_size)


def unlabelled(path: str | Path, size: int | None = None) -> Split:
    """All images below a folder, nested ones included, without labels: enough for calibration.

    ``size`` is as ``image_size`` in :func:`load`. The split's ``labels`` are None.

    Raises
    ------
    ArgumentError
        When ``size`` is below 1.
    DataError
        When the folder is missing or has no image.
    """
    return unlabelled_split(path, check_size(size, "size"))
