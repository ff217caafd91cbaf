"""What a network reads, the size of its images, their mean and standard deviation; and who says so.

In this order: the options; the run, or the folder, that the weights are of; the model. What a user's own file leaves
open, the images say if they all have one size, and else it is what ImageNet's networks read.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from clusterprune.cli.locating import Located, as_text, stated_number
from clusterprune.data import Dataset, Split
from clusterprune.errors import ArgumentError, DataError
from clusterprune.models import ModelSpec
from clusterprune.models.spec import usual_statistics

Shape = tuple[int, int, int]
SplitOrDataset = TypeVar("SplitOrDataset", Split, Dataset)


def settle_input(
    spec: ModelSpec,
    wanted: dict[str, Any],
    located: Located | None,
    images: Split | None,
    tell: Callable[[str], None],
) -> ModelSpec:
    """Return a model with the input that it is worked on at, and say what that is.

    Parameters
    ----------
    wanted
        The options `image_size`, `mean` and `std`; what the model does not state itself is noted there, so that the
        run's folder is enough to read images alike.
    images
        The data, or other images to work on.

    Raises
    ------
    ArgumentError
        If mean or std are no numbers, one for all channels or one for each.
    ModelError
        If they do not fit the shape.
    """
    shape, whose = _shape(spec, wanted, located, images)
    usual = dict(zip(("mean", "std"), usual_statistics(shape[0]), strict=True))
    found: dict[str, Any] = {"input_shape": shape}
    said = [f"Input {' x '.join(map(str, shape))} ({whose})"]
    for name, assumed in usual.items():
        found[name], who = _statistics(name, spec, wanted, located, shape[0], assumed)
        said.append(f"{name} {', '.join(f'{value:.4g}' for value in found[name])} ({who})")
    tell(f"{'; '.join(said)}.")
    settled = replace(spec, **found)
    if shape != spec.input_shape or "input_shape" in spec.assumed:
        wanted["image_size"] = square_size(settled)
    for name in usual:
        if found[name] != getattr(spec, name):
            wanted[name] = as_text(found[name])
    return settled


def square_size(spec: ModelSpec) -> int | None:
    """Return the size that images are brought to; None where the input is no square, so that they come as they are."""
    _, height, width = spec.input_shape
    return height if height == width else None


def first_of(dataset: Dataset) -> Split:
    """Return the images that say what all are like: those to train on, where there are any."""
    return next(iter(dataset.splits.values()))


def at_size(images: SplitOrDataset, spec: ModelSpec) -> SplitOrDataset:
    """Return images as a model reads them."""
    size = square_size(spec)
    return images if size is None else images.resized(size)


def _shape(
    spec: ModelSpec, wanted: Mapping[str, Any], located: Located | None, images: Split | None
) -> tuple[Shape, str]:
    """Return (channels, height, width), and who says so."""
    own = images.own_shape if images is not None and "input_shape" in spec.assumed else None
    channels = spec.input_shape[0] if own is None else own[0]
    if (size := wanted.get("image_size")) is not None:
        return (channels, size, size), "as asked for"
    if located is not None and located.origin is not None:
        return located.origin.input_shape, "as it was compressed for"
    if located is not None and (size := stated_number(located, "image_size")) is not None:
        return (channels, size, size), "as in the run of the weights"
    if "input_shape" not in spec.assumed:
        return spec.input_shape, "the model's own"
    if own is not None:
        return own, "the images' own size"
    return spec.input_shape, "assumed, for the images differ in size" if images is not None else "assumed"


def _statistics(
    name: str, spec: ModelSpec, wanted: Mapping[str, Any], located: Located | None, channels: int,
    assumed: tuple[float, ...],
) -> tuple[tuple[float, ...], str]:  # fmt: skip
    """Return the mean or the standard deviation of every channel, and who says so."""
    if wanted.get(name) is not None:
        return _numbers(name, wanted[name], channels), "as asked for"
    if located is not None and located.config.get(name) is not None:
        try:
            found = _numbers(name, located.config[name], channels)
        except ArgumentError as error:
            raise DataError(f"{located.config_file}: {error}") from None
        return found, "as in the run of the weights" if located.origin is None else "as it was compressed for"
    if name in spec.assumed:
        return assumed, "assumed"
    return getattr(spec, name), "the model's own"


def _numbers(name: str, value: Any, channels: int) -> tuple[float, ...]:
    """Read numbers with commas between them; one stands for every channel."""
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        found = ()
    if len(found) == 1:
        found *= channels
    if len(found) != channels or not all(map(math.isfinite, found)) or (name == "std" and min(found) <= 0):
        raise ArgumentError(
            f"{name} must be {'positive ' if name == 'std' else ''}numbers with commas between them, one for each of "
            f"the {channels} channels or one for all, of images in [0, 1], but got {name}={value!r}"
        )
    return found
