"""What a merging is: what the kept channels of a group take over from the removed ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group, ParameterSlice
from clusterprune.graph.images import Images, Progress
from clusterprune.plan import Merge, Plan

Moments = Callable[[ParameterSlice], tuple[Tensor, ParameterSlice] | None]
"""Says of a consumer of a group what it reads: second moments of channels with a constant appended, (inputs + 1,
inputs + 1), and where in them the group sits. None: nothing can be handed over to that consumer."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Which channels of a group stay.

    Attributes
    ----------
    channels
        Their indices, ascending, shape (k,).
    representative
        For every channel the kept one that stands for it, shape (channels,), a kept one for itself; None where
        channels were not chosen by clusters.
    """

    channels: np.ndarray
    representative: np.ndarray | None = None


@runtime_checkable
class Merging(Protocol):
    """What kept channels take over.

    An implementation is a frozen dataclass whose fields are its options. :func:`clusterprune.merge.assembly.assemble`
    first asks for a merge of every group that is cut, then has the whole plan finished. What every implementation
    promises:

    - the kept channels are those it was given, and stand for themselves;
    - a merge of identical channels changes no output, unless it drops them;
    - the same input gives the same result, and neither graph nor moments are changed.
    """

    name: ClassVar[str]
    by_cluster: ClassVar[bool]
    """Whether it has to know which kept channel stands for each removed one."""
    needs_images: ClassVar[bool]
    """Whether it looks at what layers read."""

    def merge(self, graph: ChannelGraph, group: Group, kept: Kept, moments: Moments) -> Merge:
        """Return what happens to one group; `moments` knows of no consumer where there are no images."""
        ...

    def finish(
        self,
        graph: ChannelGraph,
        plan: Plan,
        images: Images,
        *,
        generator: torch.Generator,
        progress: Progress | None = None,
    ) -> Plan:
        """Return the plan of all merges as it should be in the end; called with at least one merge, and images."""
        ...


class OfGroups:
    """A merging that is done once every group has its merge."""

    def finish(
        self,
        graph: ChannelGraph,
        plan: Plan,
        images: Images,
        *,
        generator: torch.Generator,
        progress: Progress | None = None,
    ) -> Plan:
        """Return the plan as it is."""
        return plan
