"""Objects in images: boxes with classes, as annotation files state them, and what was wrong with those files."""

import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from clusterprune.errors import DataError


class AnnotationWarning(UserWarning):
    """Annotations cannot be used as they are; the message says how many, and what was done about each kind."""


class Boxes(NamedTuple):
    """The objects in one image.

    Attributes
    ----------
    corners
        Left, top, right and bottom as fractions of the image's width and height, float32 (k, 4).
    labels
        Class of each, int64 (k,): the position of its name among the classes.
    difficult
        Whether finding it counts neither for nor against a detector, bool (k,).
    """

    corners: Tensor
    labels: Tensor
    difficult: Tensor


NO_BOXES = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
"""Of an image with nothing in it."""


class Named(NamedTuple):
    """An object as a file states it: its class by name, and corners in pixels, the first pixel from 0 to 1."""

    name: str
    left: float
    top: float
    right: float
    bottom: float
    difficult: bool


class Faults:
    """What was wrong with annotations, counted by what was done about it, with a few examples of each."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one."""
        self._found.setdefault(kind, []).append(example)

    def warn(self, name: str) -> None:
        """Say in one warning what was found in the data of this name, if anything was."""
        if self._found:
            parts = [
                f"{kind}: {len(found)} ({'; '.join(found[:3])}{'; …' if len(found) > 3 else ''})"
                for kind, found in self._found.items()
            ]
            warnings.warn(f"data={name!r}: {', '.join(parts)}", AnnotationWarning, stacklevel=4)


def boxes_in(
    objects: Iterable[Named], height: int, width: int, numbers: Mapping[str, int], where: str, faults: Faults
) -> Boxes:
    """Return the objects of one image of `height` by `width` pixels.

    A box that reaches beyond the image by more than a pixel is cut off there; one with nothing in the image, or of a
    class without a number, is left out. All are counted.

    Parameters
    ----------
    numbers
        The classes.
    where
        What the counts name as an example.
    """
    corners: list[list[float]] = []
    labels: list[int] = []
    difficult: list[bool] = []
    for one in objects:
        if one.name not in numbers:
            faults.add("boxes of classes that are not listed, left out", f"{one.name!r} in {where}")
            continue
        left, right = (min(max(x, 0.0), width) for x in (one.left, one.right))
        top, bottom = (min(max(y, 0.0), height) for y in (one.top, one.bottom))
        if not (right > left and bottom > top):
            faults.add("boxes without area in the image, left out", where)
            continue
        if min(one.left, one.top) < -1 or one.right > width + 1 or one.bottom > height + 1:
            faults.add("boxes beyond the image, cut off there", where)
        corners.append([left / width, top / height, right / width, bottom / height])
        labels.append(numbers[one.name])
        difficult.append(one.difficult)
    if not corners:
        return NO_BOXES
    return Boxes(torch.tensor(corners), torch.tensor(labels), torch.tensor(difficult))


def check_any(splits: Mapping[str, list[Boxes]], name: str) -> None:
    """Check that there are images, and objects in them.

    Raises
    ------
    DataError
        If a split has none.
    """
    for key, found in splits.items():
        if not any(len(boxes.labels) for boxes in found):
            raise DataError(
                f"data={name!r}: the {len(found)} {key} images that can be read hold no box of a known class; check "
                "the annotations, and the list of classes if there is one"
            )
