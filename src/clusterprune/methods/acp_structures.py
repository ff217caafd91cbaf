"""Structures: a network cut to given widths, with what is left of its weights or with random ones."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from clusterprune.budget import CostModel
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.graph import ChannelGraph
from clusterprune.merge.refit import refit
from clusterprune.merge.statistics import Images, Progress, as_inputs, batch_size_for, whole_batches
from clusterprune.methods.criteria import Handover, best, hand_over, scores
from clusterprune.methods.oneshot import OneShot, measure, merges_for, order_channels
from clusterprune.plans import Merge, Plan
from clusterprune.surgery import apply

Factory = Callable[[], nn.Module]
"""Makes a new network with random weights."""

ENOUGH = 0.995
"""Share of the multiply-adds it may have at which a structure is large enough."""


def macs_of(graph: ChannelGraph, widths: Mapping[str, int]) -> float:
    """Return the multiply-adds of the example's batch with groups of the given widths; others stay whole."""
    cost = CostModel(graph)
    return cost.total("macs", cost.with_widths(widths))


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
    channels from which the others can be rebuilt best, in the order of :func:`clusterprune.oneshot`.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        images: Images | None = None,
        *,
        merge: Handover = "least_squares",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        if merge != "drop" and images is None:
            raise ArgumentError(f"images=None, but merge={merge!r} looks at feature maps; give images, or use 'drop'")
        self.graph, self.merge, self.seed = graph, merge, seed
        if images is None or merge == "drop":
            self._scores = {name: score.cpu().numpy() for name, score in scores(graph, "l1").items()}
            return
        self._images = whole_batches(graph, as_inputs(images))
        groups, options = list(graph.prunable), OneShot(refit=None)
        generator = torch.Generator().manual_seed(seed)
        self._measured = measure(
            graph, groups, self._images, options, data_free=False, generator=generator, progress=progress
        )
        self._paths = order_channels(graph, groups, self._measured, options, progress)

    def __call__(self, widths: Mapping[str, int]) -> Plan:
        """Return the plan that keeps so many channels of each group; groups without a width stay whole.

        Raises
        ------
        ArgumentError
            If there is no such group, or it cannot have that width.
        """
        groups = {group.name: group for group in self.graph.prunable}
        for name, width in widths.items():
            if name not in groups:
                raise ArgumentError(f"widths names {name!r}, which is no group that may be cut; print the graph")
            if not 0 < width <= groups[name].width or width % groups[name].n_blocks:
                raise ArgumentError(
                    f"widths[{name!r}]={width} is impossible: give a multiple of {groups[name].n_blocks} up to "
                    f"{groups[name].width}"
                )
        widths = {name: widths.get(name, group.width) for name, group in groups.items()}
        generator = torch.Generator().manual_seed(self.seed)
        if self.merge == "drop":
            kept = {name: best(group, self._scores[name], widths[name]) for name, group in groups.items()}
            return hand_over(self.graph, kept, "drop", None, generator, None)
        plan = Plan.of(self.graph, merges_for(self.graph, self._paths, dict(widths), self._measured))
        if self.merge == "refit" and plan.merges:
            size = batch_size_for(self.graph)
            plan = refit(self.graph, plan, self._images, batch_size=size, generator=generator)
        return plan


def plan_for_widths(
    graph: ChannelGraph,
    widths: Mapping[str, int],
    images: Images | None = None,
    *,
    merge: Handover = "least_squares",
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Return a plan that keeps the given number of channels of each named group; see :class:`WidthPlanner`.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
    >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
    >>> cp.apply(net, plan_for_widths(graph, {"0": 5}, merge="drop"), graph=graph)[0].out_channels
    5
    """
    return WidthPlanner(graph, images, merge=merge, seed=seed, progress=progress)(widths)


def from_random(graph: ChannelGraph, plan: Plan, *, factory: Factory | None = None, seed: int = 0) -> nn.Module:
    """Return the structure of a plan with random weights: those of a new network, or drawn by its layers anew."""
    structure = replace(plan, merges=tuple(Merge(m.group, m.kept) for m in plan.merges), replaced={}, weights="")
    if factory is None:
        return reinitialise_(apply(graph.model, structure, graph=graph), seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = factory()
    return apply(fresh, structure)


def reinitialise_(model: nn.Module, seed: int) -> nn.Module:
    """Let every layer draw its own initial weights, in place, by its `reset_parameters`.

    Raises
    ------
    ModelError
        If a module has parameters and does not know how.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            if not list(module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset):
                raise ModelError(
                    f"{path or type(module).__name__} has parameters but no reset_parameters, so it cannot be trained "
                    "from random weights; give a factory, or set inherit=True"
                )
            reset()
    return model
