"""Classification accuracy."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clusterprune.arguments import check_model, type_name
from clusterprune.data import Split, normalize
from clusterprune.errors import ArgumentError, DataError, ModelError
from clusterprune.evaluate.mode import dtype_of, on_device
from clusterprune.graph.throwaway import evaluating

_AUTOCAST = (torch.bfloat16, torch.float16)


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
    batch_size: int = 250,
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
        Images per forward pass. The last batch may be smaller and counts for what it has.
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
    if dtype not in {None, torch.float32, *_AUTOCAST}:
        raise ArgumentError(f"dtype must be None, torch.bfloat16 or torch.float16, but got {dtype}.")
    if split.labels is None:
        raise DataError("accuracy needs labels, but the split is unlabelled. Use one folder per class.")
    if not len(split):
        raise DataError("accuracy needs at least one image, but the split is empty.")
    runner, place = on_device(model, device)
    kind = torch.float32 if dtype in _AUTOCAST else dtype_of(runner)
    layout = torch.channels_last if channels_last else torch.preserve_format
    classes = len(split.classes)
    hits = torch.zeros(2, dtype=torch.int64, device=place)
    images = 0
    with evaluating(runner), torch.inference_mode():
        for number, (pixels, labels) in enumerate(split.batches(batch_size, size=size)):
            batch = normalize(pixels.to(place), mean, std).to(dtype=kind, memory_format=layout)
            with torch.autocast(place.type, dtype) if dtype in _AUTOCAST else nullcontext():
                outputs = _forward(runner, batch, number)
            _check_outputs(outputs, len(batch), classes, number)
            hits += _count_hits(outputs, labels.to(place))
            images += len(batch)
            if progress:
                progress(images, len(split))
    first, fifth = (100 * int(count) / images for count in hits)
    return Accuracy(first, fifth if 5 in topk and classes >= 5 else None, images)


def _count_hits(outputs: Tensor, labels: Tensor) -> Tensor:
    """Count the images whose class is among the top 1 and the top 5 outputs, int64 (2,)."""
    top = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([top[:, 0].sum(), top.sum()])


def _forward(model: nn.Module, batch: Tensor, number: int) -> Tensor:
    try:
        return model(batch)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the device ran out of memory on batch {number} of {len(batch)} images. Lower batch_size."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the model failed on batch {number} of shape {tuple(batch.shape)}: {error}. Check "
            "that the image size and the number of channels are what it expects."
        ) from error


def _check_outputs(outputs: Tensor, rows: int, classes: int, number: int) -> None:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[0] != rows:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f"the model must return a tensor of shape ({rows}, classes), but returned {got}. Wrap "
            "it in a module that returns the class scores alone."
        )
    if outputs.shape[1] != classes:
        raise DataError(
            f"the model has {outputs.shape[1]} outputs, but the data has {classes} classes. Use "
            "data with the classes the model was trained on, or a model built with "
            f"num_classes={classes}."
        )
    if outputs.isnan().any():
        raise ModelError(
            f"the model returned NaN on batch {number}. Check its weights and the normalisation; "
            "with float16, try bfloat16."
        )
