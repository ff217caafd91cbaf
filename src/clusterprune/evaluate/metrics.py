"""What a network is worth in its task."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.arguments import type_name
from clusterprune.data import Split
from clusterprune.data.at_once import images_at_once
from clusterprune.errors import ArgumentError, DataError, ModelError
from clusterprune.evaluate.mode import dtype_of, on_device
from clusterprune.graph.arguments import check_model
from clusterprune.graph.throwaway import evaluating
from clusterprune.tasks import Task

Each = Callable[[Any, Any], None]
_AUTOCAST = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Metrics:
    """What a network is worth.

    Attributes
    ----------
    values
        By name, in the order of the task's `metrics`; None for one that does not exist.
    images
        How many images it was measured on; files that cannot be read are not among them.
    """

    values: Mapping[str, float | None]
    images: int

    @property
    def deciding(self) -> float:
        """The first of them; more is better."""
        return next(iter(self.values.values())) or 0.0


def metrics(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    size: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    progress: Callable[[int, int], None] | None = None,
    each: Each | None = None,
) -> Metrics:
    """Run every readable image of a split through a network, and measure what its task measures.

    The model is evaluated in evaluation mode and returned to the mode it had. When ``device`` is
    not where it is, a copy is used.

    Parameters
    ----------
    task
        What the network is for.
    split
        Images of the task: its validation images, or others.
    size
        Image size, as in :meth:`clusterprune.data.Split.batches`.
    batch_size
        Images per forward pass; None for as many as are fast: 250, and on a processor fewer of large images.
        The last batch may be smaller and counts for what it has.
    device
        Where to run; None for where the model is.
    dtype
        bfloat16 or float16 runs under autocast; None in the model's own type.
    channels_last
        Hand batches over in channels-last memory format. Often faster on GPUs, but a model that
        flattens with ``view`` cannot take it.
    progress
        Called as ``progress(done, total)`` after every batch.
    each
        Called as ``each(outputs, targets)`` with every batch, for who counts something more on the way.

    Raises
    ------
    ArgumentError
        When an argument is out of range, or the split does not fit the task.
    DataError
        When the split is empty.
    ModelError
        When the model fails, returns NaN, or not what the task needs.
    """
    check_model(model)
    if not isinstance(split, Split):
        raise ArgumentError(
            f"split must be a Split of images, but got split={type_name(split)}; Split.from_tensors makes one."
        )
    if dtype not in {None, torch.float32, *_AUTOCAST}:
        raise ArgumentError(f"dtype must be None, torch.bfloat16 or torch.float16, but got {dtype}.")
    if not len(split):
        raise DataError("a network is measured on at least one image, but the split is empty.")
    collate = task.targets(split)
    runner, place = on_device(model, device)
    kind = torch.float32 if dtype in _AUTOCAST else dtype_of(runner)
    layout = torch.channels_last if channels_last else torch.preserve_format
    rows: list[Tensor] = []
    images = 0
    if batch_size is None:
        batch_size = images_at_once(*split.resized(size or split.image_size).shape[1:], place)
    with evaluating(runner), torch.inference_mode():
        for number, (pixels, positions) in enumerate(split.numbered().batches(batch_size, size=size)):
            batch = task.normalize(pixels.to(place)).to(dtype=kind, memory_format=layout)
            with torch.autocast(place.type, dtype) if dtype in _AUTOCAST else nullcontext():
                outputs = _forward(runner, batch, number)
            if not number:
                task.on(split).check(outputs, batch)
            _check_finite(outputs, number)
            targets = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(place), collate(positions))
            rows.append(task.observe(outputs, batch, targets).cpu())
            if each:
                each(outputs, targets)
            images += len(batch)
            if progress:
                progress(images, len(split))
    return Metrics(task.summarise(torch.cat(rows)), images)


def _forward(model: nn.Module, batch: Tensor, number: int) -> Any:
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


def _check_finite(outputs: Any, number: int) -> None:
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.isnan().any():
            raise ModelError(
                f"the model returned NaN on batch {number}. Check its weights and the normalisation; "
                "with float16, try bfloat16."
            )
