"""What a criterion is, and what it may look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import as_inputs, batches

Targets = Callable[[Tensor], Any]
"""Puts a batch's targets together, from the positions of its images, int64 (n,), on the CPU; see
:meth:`clusterprune.tasks.Task.targets`."""


class HasLoss(Protocol):
    """What a criterion may know of a task: what training minimises, and whether outputs fit the data."""

    def check(self, outputs: Any, images: Tensor) -> None:
        """Raise an ArgumentError or ModelError where a network with these outputs does not fit the data."""
        ...

    def loss(self, outputs: Any, images: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar; `outputs` is what the network returned."""
        ...


@dataclass(frozen=True, eq=False)
class ScoreInputs:
    """What a criterion may look at.

    Attributes
    ----------
    graph
        The traced network.
    groups
        The groups to score.
    images
        Normalised inputs, one tensor for each that the network reads; None if there are none.
    targets
        What the network should make of the images; None if that is not known.
    generator
        Where random numbers come from, on the CPU.
    task
        What the network is for; None if that is not known.
    """

    graph: ChannelGraph
    groups: Sequence[Group]
    images: tuple[Tensor, ...] | None
    targets: Targets | None
    generator: torch.Generator
    task: HasLoss | None

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.graph.model.parameters()).device

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield consecutive batches of at most so many images.

        Raises
        ------
        ArgumentError
            There are no images.
        """
        if self.images is None:
            raise ArgumentError("this criterion looks at feature maps or gradients, but images=None; give images")
        return batches(self.images, size)

    def batches_with_targets(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """Yield consecutive batches with their targets, on the images' device.

        Raises
        ------
        ArgumentError
            There are no images, or no targets.
        """
        found = self.batches(size)
        if self.targets is None:
            raise ArgumentError(
                "this criterion differentiates the loss on images with labels, but labels=None; give labels"
            )
        start = 0
        for batch in found:
            positions = torch.arange(start, start + len(batch[0]))
            start += len(batch[0])
            device = batch[0].device
            yield batch, pytree.tree_map_only(Tensor, lambda part, to=device: part.to(to), self.targets(positions))

    @property
    def count(self) -> int:
        """Number of images."""
        return 0 if self.images is None else len(as_inputs(self.images)[0])


@runtime_checkable
class Criterion(Protocol):
    """How much each channel matters: the lowest scores go first.

    An implementation is a frozen dataclass whose fields are its options; a function does too, then without a name of
    its own. What every implementation promises:

    - a score for every channel of every group that it is asked for, finite and never negative;
    - reordering the channels of a group reorders its scores and changes nothing else, unless they are drawn;
    - the same input and the same state of the generator give the same scores, and the network is left as it is.
    """

    name: ClassVar[str]

    def __call__(self, inputs: ScoreInputs) -> Mapping[str, Tensor]:
        """Return the scores by name of group: (channels,), of any floating dtype, on the network's device."""
        ...
