"""Structures: a network cut to given widths, with what is left of its weights or with random ones."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from clusterprune.budget.allocation import CostModel
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.images import Images, Progress, as_inputs, whole_batches
from clusterprune.graph.put_back import seeded
from clusterprune.merge import Drop, FreeMergingName, Kept, assemble, read_merging
from clusterprune.merge.divergence import BY_KIND, Divergence
from clusterprune.merge.elimination import RemovalOrder
from clusterprune.merge.measured import Measured, measure, moments_of
from clusterprune.merge.orders import kept_of, order_channels
from clusterprune.methods.layers import with_followers
from clusterprune.methods.oneshot import OneShot
from clusterprune.methods.prune_by import best, scores
from clusterprune.models.reinitialise import reinitialise_
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.apply import apply

Factory = Callable[[], nn.Module]
"""Makes a new network with random weights."""

ENOUGH = 0.995
"""Share of the multiply-adds it may have at which a structure is large enough."""


def macs_of(graph: ChannelGraph, widths: Mapping[str, int]) -> float:
    """Return the multiply-adds of the example's batch with groups of the given widths; others stay whole.

    Followers have their leaders' widths, here as in all that follows.
    """
    cost = CostModel(graph)
    return cost.total("macs", cost.with_widths(with_followers(graph, widths)))


def scaled_to(graph: ChannelGraph, widths: Mapping[str, int], limit: float) -> dict[str, int]:
    """Return widths in the given proportions, up to whole channels, of as many multiply-adds as the limit allows.

    Parameters
    ----------
    limit
        Multiply-adds of the example's batch.
    """
    groups = graph.by_name

    def scaled(factor: float) -> dict[str, int]:
        # A little more, lest rounding take a channel at a factor that is 1 but for the last digits.
        wanted = {name: int(width * factor + 1e-6) // groups[name].n_blocks for name, width in widths.items()}
        return {
            name: min(groups[name].width, max(1, blocks) * groups[name].n_blocks) for name, blocks in wanted.items()
        }

    def affordable(structure: Mapping[str, int]) -> bool:
        return macs_of(graph, structure) <= limit

    low, high = 0.0, max(groups[name].width / width for name, width in widths.items())
    if affordable(scaled(high)):
        return scaled(high)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if affordable(scaled(middle)) else (low, middle)
    found = scaled(low)
    # Layers of one width grow all at once, and residual streams in costly steps. What that leaves goes to the layers
    # that would be next, then to any, a channel at a time.
    room, first = True, [name for name, width in scaled(high).items() if width > found[name]]
    while room and macs_of(graph, found) < ENOUGH * limit:
        room = False
        for name in (*first, *found):
            wider = {**found, name: found[name] + groups[name].n_blocks}
            if wider[name] <= groups[name].width and affordable(wider):
                found, room = wider, True
        first = []
    return found


class WidthPlanner:
    """Plans for given widths, over and over: what does not depend on the widths is done once.

    "drop" keeps the filters of largest ℓ1 norm, as the released code does. "least_squares" and "refit" keep the
    channels from which the others can be rebuilt best, in the order of :func:`clusterprune.oneshot`, for which
    `divergence` says how far two networks' outputs are apart.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        images: Images | None = None,
        *,
        merge: FreeMergingName = "least_squares",
        divergence: Divergence | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.graph, self.seed = graph, seed
        self._divergence = divergence or BY_KIND
        self.merge: FreeMergingName = merge
        self._images = () if images is None else as_inputs(images)
        self._progress = progress
        self._check(merge)
        if merge != "drop":
            _ = self._order  # now, not within the first plan

    def _check(self, merge: FreeMergingName) -> None:
        if merge != "drop" and not self._images:
            raise ArgumentError(f"images=None, but merge={merge!r} looks at feature maps; give images, or use 'drop'")

    @cached_property
    def _norms(self) -> dict[str, np.ndarray]:
        return {name: score.cpu().numpy() for name, score in scores(self.graph, "l1").items()}

    @cached_property
    def _order(self) -> tuple[Measured, dict[str, RemovalOrder]]:
        """What was measured on the images, and by it the order of the channels of each group."""
        groups, options = list(self.graph.prunable), OneShot(refit=None)
        generator = torch.Generator().manual_seed(self.seed)
        images = whole_batches(self.graph, self._images)
        effort = replace(options.effort, n_folds=1)
        measured = measure(
            self.graph, groups, images, effort, divergence=self._divergence, generator=generator,
            progress=self._progress,
        )  # fmt: skip
        paths = order_channels(self.graph, groups, measured, damping=options.damping, progress=self._progress)
        return measured, paths

    def __call__(self, widths: Mapping[str, int], *, merge: FreeMergingName | None = None) -> Plan:
        """Return the plan that keeps so many channels of each group; groups without a width stay whole.

        Parameters
        ----------
        merge
            How work is handed over, if otherwise than usual.

        Raises
        ------
        ArgumentError
            If there is no such group, or it cannot have that width, or there are no images to merge by.
        """
        merge = self.merge if merge is None else merge
        self._check(merge)
        groups = {group.name: group for group in self.graph.prunable}
        for name, width in widths.items():
            if name not in groups:
                raise ArgumentError(f"widths names {name!r}, which is no group that may be cut; print the graph")
            if not 0 < width <= groups[name].width or width % groups[name].n_blocks:
                raise ArgumentError(
                    f"widths[{name!r}]={width} is impossible: give a multiple of {groups[name].n_blocks} up to "
                    f"{groups[name].width}"
                )
        widths = with_followers(self.graph, widths)
        widths = {name: widths.get(name, group.width) for name, group in groups.items()}
        generator = torch.Generator().manual_seed(self.seed)
        if merge == "drop":
            kept = {name: Kept(best(group, self._norms[name], widths[name])) for name, group in groups.items()}
            return assemble(self.graph, kept, Drop(), None, generator=generator)
        measured, paths = self._order
        kept, known = kept_of(self.graph, paths, widths), moments_of(self.graph, measured)
        images = whole_batches(self.graph, self._images)
        return assemble(self.graph, kept, read_merging(merge), images, moments=known, generator=generator)


def from_random(graph: ChannelGraph, plan: Plan, *, factory: Factory | None = None, seed: int = 0) -> nn.Module:
    """Return the structure of a plan with random weights: those of a new network, or drawn by its layers anew."""
    structure = replace(plan, merges=tuple(Merge(m.group, m.kept) for m in plan.merges), replaced={}, weights="")
    if factory is None:
        return reinitialise_(apply(graph.model, structure, graph=graph), seed)
    with seeded(seed):
        fresh = factory()
    return apply(fresh, structure)
