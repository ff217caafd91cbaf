"""The accuracy of a classifier, in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clusterprune.arguments import type_name
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, DataError, ModelError
from clusterprune.evaluate.metrics import metrics
from clusterprune.graph.arguments import check_model
from clusterprune.tasks import Classification


@dataclass(frozen=True)
class Accuracy:
    """Share of images classified correctly.

    Attributes
    ----------
    top1, top5
        Percent of images whose class is the highest, or among the five highest, outputs. ``top5``
        is None when it was not asked for or there are fewer than five classes.
    images
        How many images were classified; files that cannot be read are not among them.
    """

    top1: float
    top5: float | None
    images: int


def accuracy(
    model: nn.Module,
    split: Split,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None = None,
    batch_size: int | None = None,
    topk: tuple[int, ...] = (1, 5),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Classify every readable image of a split and count the hits.

    The model is evaluated in evaluation mode and returned to the mode it had. When ``device`` is
    not where it is, a copy is used.

    Parameters
    ----------
    model
        Maps (n, c, h, w) to (n, number of classes).
    split
        Labelled images; their number of classes must be the model's.
    mean, std
        Normalisation, as in :func:`clusterprune.data.normalize`.
    size
        Image size, as in :meth:`clusterprune.data.Split.batches`.
    batch_size
        Images per forward pass; None for as many as are fast: 250, and on a processor fewer of large images.
        The last batch may be smaller and counts for what it has.
    topk
        Which accuracies: 1 (always computed) and 5.
    device
        Where to run; None for where the model is.
    dtype
        bfloat16 or float16 runs under autocast; None in the model's own type.
    channels_last
        Hand batches over in channels-last memory format. Often faster on GPUs, but a model that
        flattens with ``view`` cannot take it.
    progress
        Called as ``progress(done, total)`` after every batch.

    Raises
    ------
    ArgumentError
        When an argument is out of range, or mean and std do not fit the images.
    DataError
        When the split is empty or unlabelled, or has another number of classes than the model.
    ModelError
        When the model fails, returns another shape, or returns NaN.
    """
    check_model(model)
    if not isinstance(split, Split):
        raise ArgumentError(
            f"split must be a Split of labelled images, but got split={type_name(split)}; Split.from_tensors makes one."
        )
    if not isinstance(topk, tuple | list) or not topk or not set(topk) <= {1, 5}:
        raise ArgumentError(f"topk may contain 1 and 5, but got topk={topk}.")
    if split.labels is None:
        raise DataError("accuracy needs labels, but the split is unlabelled. Use one folder per class.")
    if not len(split):
        raise DataError("accuracy needs at least one image, but the split is empty.")
    found = metrics(
        model, _Exactly(split, mean=mean, std=std), split, size=size, batch_size=batch_size, device=device,
        dtype=dtype, channels_last=channels_last, progress=progress,
    )  # fmt: skip
    return Accuracy(found.deciding, found.values["accuracy_top5"] if 5 in topk else None, found.images)


class _Exactly(Classification):
    """A classification by a network that has an output for each class of the data, and no more."""

    def check(self, outputs: Any, images: Tensor) -> None:
        """Compare the numbers of outputs and classes."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(images):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ModelError(
                f"the model must return a tensor of shape ({len(images)}, classes), but returned {got}. Wrap "
                "it in a module that returns the class scores alone."
            )
        classes = len(self.train.classes)
        if outputs.shape[1] != classes:
            raise DataError(
                f"the model has {outputs.shape[1]} outputs, but the data has {classes} classes. Use "
                "data with the classes the model was trained on, or a model built with "
                f"num_classes={classes}."
            )
