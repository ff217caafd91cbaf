"""Images in whatever form people have them: tensors, loaders, data sets, lists of batches, generators."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune.arguments import tensors_in, type_name
from clusterprune.errors import ArgumentError
from clusterprune.graph.nest import is_mapping, is_sequence

ENOUGH = 1024
"""Images that are read from what could go on; more of them change nothing (see the benchmarks)."""
_NAMES = ("images", "image", "pixel_values", "inputs", "input", "x", "img")
"""How the images of a batch that is a mapping are usually called."""


def gather(images: Any, examples: Sequence[Tensor], *, limit: int = ENOUGH, seed: int = 0) -> tuple[Tensor, ...]:
    """Return one tensor for each input of a network.

    Parameters
    ----------
    images
        - a tensor (n, c, h, w), or for a network of several inputs a tuple or list of tensors, one for each;
        - a batch with its labels, ``(x, y)``;
        - a list, a ``DataLoader``, a generator or any other iterable of batches, with labels or without, as tensors,
          tuples or mappings;
        - a ``Dataset``, of which `limit` items are drawn.
    examples
        The network's inputs when it was traced, each (n, …).
    limit
        Images that are read at most of what is not a tensor already.
    seed
        Draws the items of a data set.

    Raises
    ------
    ArgumentError
        If there are no images in it, or they have not the shape that the network reads.

    Examples
    --------
    >>> x, y = torch.zeros(5, 3, 8, 8), torch.zeros(5, dtype=torch.long)
    >>> [batch.shape[0] for batch in gather([(x, y), (x, y)], [x[:1]])]
    [10]
    """
    if isinstance(images, Tensor):
        return (images,)
    if _is_one_of_each(images, examples):
        return tuple(images)
    if _is_batch(images, examples):
        return _inputs_of(images, examples)
    batches = _items(images, limit, seed) if _is_dataset(images) else images
    if not _is_iterable(batches):
        return tensors_in(images)  # which says what is wrong with it
    parts: list[tuple[Tensor, ...]] = []
    count = 0
    for batch in batches:
        part = _inputs_of(batch, examples)
        if part[0].ndim == examples[0].ndim - 1:  # single images
            part = tuple(tensor.unsqueeze(0) for tensor in part)
        parts.append(part)
        count += len(part[0])
        if count >= limit:
            break
    if not parts:
        raise ArgumentError(f"images={type_name(images)} holds no batch; give some hundred images")
    return tuple(torch.cat(tensors)[:limit] for tensors in zip(*parts, strict=True))


def _is_one_of_each(images: Any, examples: Sequence[Tensor]) -> bool:
    """Tell whether there is one tensor for each input."""
    if not (is_sequence(images) and len(images) == len(examples)):
        return False
    fits = (isinstance(part, Tensor) and part.ndim == e.ndim for part, e in zip(images, examples, strict=True))
    return all(fits)


def _is_batch(images: Any, examples: Sequence[Tensor]) -> bool:
    """Tell whether it is inputs with their labels: tensors of another kind behind as many as the network has inputs."""
    count = len(examples)
    if not (is_sequence(images) and len(images) == count + 1):
        return False
    labels = images[count]
    return _is_one_of_each(images[:count], examples) and isinstance(labels, Tensor) and labels.ndim < examples[0].ndim


def _is_iterable(images: Any) -> bool:
    """Tell whether it may hold batches: neither pixels nor names, nor a network, nor a split that is not normalised."""
    if isinstance(images, (str, bytes, Mapping, np.ndarray, nn.Module)) or hasattr(images, "batches"):
        return False
    if is_sequence(images) and any(isinstance(part, np.ndarray) for part in images):
        return False
    return isinstance(images, Iterable)


def _is_dataset(images: Any) -> bool:
    """Tell whether items are found by their number, and are no batches: a PyTorch `Dataset`, or one like it."""
    if hasattr(images, "batches"):  # a split of ours, whose pixels are not normalised
        return False
    sized = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    return sized and not isinstance(images, (tuple, list, str, bytes, Mapping, np.ndarray, nn.Module))


def _items(dataset: Any, limit: int, seed: int) -> Iterable[Any]:
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return (dataset[int(at)] for at in itertools.islice(order, limit))


def _inputs_of(batch: Any, examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the network's inputs out of a batch or an item, without labels and whatever else is with them."""
    count = len(examples)
    if is_mapping(batch):
        found = [batch[name] for name in _NAMES if isinstance(batch.get(name), Tensor)]
        if count == 1 and found:
            return (_checked(found[0], examples[0]),)
        raise ArgumentError(
            f"a batch of images is a mapping of {', '.join(map(str, batch))}, which does not say where its images are; "
            "give tensors, such as (batch['pixels'] for batch in loader)"
        )
    parts = batch if is_sequence(batch) else (batch,)
    if len(parts) < count or not all(isinstance(part, Tensor) for part in parts[:count]):
        raise ArgumentError(f"images holds {_told_of(batch)} where a batch of tensors is wanted; {_REMEDY}")
    return tuple(_checked(part, example) for part, example in zip(parts, examples, strict=False))


def _checked(part: Tensor, example: Tensor) -> Tensor:
    """Check that a tensor holds images, or is one."""
    if part.ndim not in (example.ndim, example.ndim - 1):
        raise ArgumentError(
            f"images holds a tensor of shape {tuple(part.shape)}, but the network reads {tuple(example.shape[1:])} for "
            "each image; give batches (n, …), images first and labels behind them"
        )
    return part


_REMEDY = "to_tensor of torchvision.transforms.v2 makes one of a picture, and normalize of clusterprune.data normalises"


def _told_of(batch: Any) -> str:
    parts = batch if is_sequence(batch) else (batch,)
    return ", ".join(sorted({type_name(part) for part in parts})) or "nothing"
