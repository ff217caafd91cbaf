"""Images as a network's inputs: checked against the traced example, and in batches of a size that is quick."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from clusterprune.arguments import tensors_in
from clusterprune.errors import ArgumentError
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.inputs import gather

Images = Tensor | tuple[Tensor, ...]
"""A network's inputs: one tensor, or one for each of them; the first dimension counts images."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is; 0 says that this is not known."""


def silent(phase: str, done: int, total: int) -> None:
    """Report no progress."""


def as_inputs(images: Images) -> tuple[Tensor, ...]:
    """Return the network's inputs as a tuple of tensors that share their first dimension.

    Raises
    ------
    ArgumentError
        If `images` are no tensors.
    """
    return tensors_in(images)


def inputs_of(graph: ChannelGraph, images: Any, seed: int = 0) -> tuple[Tensor, ...]:
    """Return the network's inputs out of whatever form people have images in; see :func:`gather`.

    Raises
    ------
    ArgumentError
        If there are no images in it, or they do not fit the traced example.
    """
    inputs = gather(images, graph.example_tensors, seed=seed)
    check_images(graph, inputs)
    return inputs


def batches(images: Images, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield consecutive batches of the network's inputs."""
    inputs = as_inputs(images)
    for start in range(0, len(inputs[0]), size):
        yield tuple(tensor[start : start + size] for tensor in inputs)


def whole_batches(graph: ChannelGraph, images: Images) -> tuple[Tensor, ...]:
    """Return the images, less those that do not fill a batch of a graph that has but one batch size.

    Raises
    ------
    ArgumentError
        If not even one batch can be filled.
    """
    inputs = as_inputs(images)
    size = graph.batch_size.traced if graph.batch_size.fixed is not None else 1
    count = len(inputs[0]) // max(1, size) * max(1, size)
    if not count:
        raise ArgumentError(
            f"{len(inputs[0])} images are too few: the model runs with a batch of {size} only, as it was traced"
        )
    return tuple(tensor[:count] for tensor in inputs)


def batch_size_for(graph: ChannelGraph, bytes_per_batch: float = 3.2e7, most: int = 128) -> int:
    """Return how many images keep the largest activation under a size that caches and allocators like.

    A graph that runs with its traced batch size alone gets that.
    """
    if graph.batch_size.fixed is not None and graph.batch_size.traced:
        return graph.batch_size.traced
    largest = max(
        (
            value.numel() / max(1, value.shape[0])
            for node in graph.fx.nodes
            if isinstance(value := node.meta.get("val"), Tensor) and value.ndim > 1 and node.op == "call_function"
        ),
        default=1,
    )
    return int(min(most, max(1, bytes_per_batch // (4 * float(largest)))))


def gradient_batch_size(graph: ChannelGraph, most: int = 128) -> int:
    """Return the batch size for passes that keep their activations: half as many images."""
    return batch_size_for(graph, 1.6e7, most)


def check_images(graph: ChannelGraph, inputs: tuple[Tensor, ...]) -> None:
    """Raise :class:`ArgumentError` for images that do not fit the traced example."""
    examples = graph.example_tensors
    if len(inputs) != len(examples):
        raise ArgumentError(
            f"the model has {len(examples)} tensor inputs, but images holds {len(inputs)} tensors; give one for each "
            "input, and make one of a list of images by torch.stack(images)"
        )
    for given, example in zip(inputs, examples, strict=True):
        if given.shape[1:] != example.shape[1:] or given.dtype != example.dtype:
            raise ArgumentError(
                f"images of shape {tuple(given.shape[1:])} and {given.dtype} do not fit the traced example of shape "
                f"{tuple(example.shape[1:])} and {example.dtype}; resize and normalise them, or trace with their shape"
            )
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            raise ArgumentError("images hold NaN or infinity; check the normalisation")
        if len(given) != len(inputs[0]):
            raise ArgumentError(
                f"images holds inputs of different number, {', '.join(str(len(t)) for t in inputs)}; "
                "give the same number of each"
            )
        if len(given) < 2:
            raise ArgumentError(f"{len(given)} image is too few to measure anything; give some hundred")
