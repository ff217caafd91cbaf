"""What tasks on images have in common: the data and its checks."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from clusterprune.arguments import check_statistics
from clusterprune.data import Split, normalize
from clusterprune.data.augment import Augmentation, augment, augmented, draw
from clusterprune.errors import ArgumentError
from clusterprune.merge.divergence import ByKind

SplitLike = Split | tuple[Tensor, Tensor]


class ImageTask(ByKind):
    """The data of a task, and what does not depend on its targets.

    Parameters
    ----------
    train, validation
        A split, or a pair of uint8 images (n, c, h, w) and integer labels (n,).
    mean, std
        Per channel, of images in [0, 1].
    whole
        `train` and `validation` together, for what trains after all is chosen; None is `train`.

    Raises
    ------
    ArgumentError
        Images, mean or std are of another kind, or do not fit one another.
    """

    def __init__(
        self,
        train: SplitLike,
        validation: SplitLike | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        whole: SplitLike | None = None,
    ) -> None:
        self.mean, self.std = check_statistics(mean, std)
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ArgumentError(
                "mean and std must have one value per channel, those of std above 0, but got "
                f"mean={self.mean}, std={self.std}"
            )
        self._set(train, validation, whole)

    @property
    def guess(self) -> float | None:
        """None: no image is simply right or wrong."""
        return None

    def on(self, train: SplitLike, validation: SplitLike | None = None) -> Self:
        """Return the same task on other images."""
        other = copy.copy(self)
        other._set(train, validation, None)
        return other

    def normalize(self, images: Tensor) -> Tensor:
        """Compute ``(images / 255 - mean) / std`` per channel, float32."""
        return normalize(images, self.mean, self.std)

    def targets(self, split: Split) -> Callable[[Tensor], Any]:
        """Return a function from positions to no targets at all."""
        del split
        return lambda _: None

    def crops_files(self, kind: Augmentation) -> bool:
        """Whether `kind` is random windows: they are of whole files, before these are made smaller."""
        return kind == "resized_crop_flip"

    def augment(
        self,
        images: Tensor,
        targets: Any,
        kind: Augmentation,
        generator: torch.Generator,
        total: int | None = None,
        share: slice | None = None,
    ) -> tuple[Tensor, Any]:
        """Change the images at random; the targets stay."""
        return augment(images, kind, generator, total, share), targets

    def draws(
        self, kind: Augmentation, count: int, size: tuple[int, int], generator: torch.Generator
    ) -> tuple[Tensor, ...] | None:
        """Draw what :meth:`augmented` does to so many images; see :func:`clusterprune.data.augment.draw`."""
        return draw(kind, count, size, generator)

    def augmented(
        self, images: Tensor, targets: Any, kind: Augmentation, draws: tuple[Tensor, ...]
    ) -> tuple[Tensor, Any]:
        """Change the images by what was drawn; the targets stay."""
        return augmented(images, kind, draws), targets

    def sheet(self, images: Tensor, targets: Any, outputs: Mapping[str, Any]) -> Tensor | None:
        """None: nothing is drawn."""
        del images, targets, outputs

    def _set(self, train: SplitLike, validation: SplitLike | None, whole: SplitLike | None) -> None:
        self.train = self._checked(train, "train")
        self.validation = None if validation is None else self._checked(validation, "validation")
        self.whole = None if whole is None else self._checked(whole, "whole")

    def _checked(self, images: SplitLike, name: str) -> Split:
        split = _as_split(images, name)
        if not len(split):
            raise ArgumentError(f"{name} holds no images")
        try:
            self.targets(split)
        except ArgumentError as error:
            raise ArgumentError(f"{name} {error}") from None
        return split


def _as_split(images: SplitLike, name: str) -> Split:
    if isinstance(images, Split):
        return images
    try:
        pixels, labels = images
        # Narrower integers are as good; Split refuses what is no integer.
        whole = not (labels.is_floating_point() or labels.is_complex())
        return Split.from_tensors(pixels, labels.to(torch.int64) if whole else labels)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"{name} must be a Split or a pair of image and label tensors, but got {type(images).__name__}"
        ) from error
