"""What a cut goes by: which channels stay, and what they take over. Methods are told by an object.

ClusterCut     clusters of channels, as ICP and ACP were published
OneShotCut     all that the one-shot compressor knows
CriterionCut   a score per channel
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from clusterprune.arguments import shown
from clusterprune.budget.allocation import CostModel, check_fraction
from clusterprune.budget.limits import RoundTo
from clusterprune.clustering import DBSCAN, Clustering
from clusterprune.criteria import CriterionName, HasLoss, Targets
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.images import Images, Progress
from clusterprune.merge import FreeMergingName, MergingName
from clusterprune.merge.divergence import Divergence
from clusterprune.methods._settings import BUDGET, fixed, option, read_clustering
from clusterprune.methods.budget import Budget, read_budget
from clusterprune.methods.clustered import cluster
from clusterprune.methods.foresight import Foresight, check_memory, foresee
from clusterprune.methods.layers import inner_groups, published_layers
from clusterprune.methods.meeting import check_reachable
from clusterprune.methods.oneshot import OneShot, oneshot
from clusterprune.methods.planner import measure
from clusterprune.methods.prune_by import Scope, prune_by
from clusterprune.plan import Plan
from clusterprune.similarity import FeatureMaps

Layers = Literal["inner", "all"]


@dataclass(frozen=True)
class Keep:
    """What a cut shall leave of the original network's cost. Of several targets, all hold.

    Attributes
    ----------
    macs, params, latency
        The share, in (0, 1], of multiply-adds, parameters, or measured time.
    max_macs, max_params, max_latency_ms
        The most multiply-adds of an image, parameters, or milliseconds.
    round_to, min_width
        Kept widths are multiples of `round_to` and at least `min_width`.
    clock
        What a time is measured by, as `latency` of :class:`clusterprune.methods.budget.Budget`.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    max_macs: float | None = None
    max_params: float | None = None
    max_latency_ms: float | None = None
    round_to: RoundTo = 1
    min_width: int = 1
    clock: Any = None

    def check(self) -> None:
        """Raise :class:`ArgumentError` unless there is a target, and all that are given can be met."""
        read_budget(self.arguments())

    def arguments(self) -> Budget:
        """Return the targets, with the widths, as the functions that plan take them."""
        return {
            "keep_macs": self.macs, "keep_params": self.params, "keep_latency": self.latency,
            "max_macs": self.max_macs, "max_params": self.max_params, "max_latency_ms": self.max_latency_ms,
            "round_to": self.round_to, "min_width": self.min_width, "latency": self.clock,
        }  # fmt: skip


class Aim(HasLoss, Divergence, Protocol):
    """What a cut may know of a task: its loss, and how far two networks' outputs are apart."""


class Cut(Protocol):
    """Chooses a plan for a network as it is; a frozen dataclass of settings."""

    def check(self, keep: Keep) -> None:
        """Raise :class:`ArgumentError` if settings and share do not go together."""
        ...

    def plan(
        self, graph: ChannelGraph, images: Images | None, keep: Keep, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Plan:  # fmt: skip
        """Return the plan.

        Parameters
        ----------
        images
            Normalised inputs, shape (images, channels, height, width); None where there are none.
        targets, task
            What the images should give, from their positions; and what the network is for, which says how far outputs
            are apart, and whose loss a criterion may differentiate.
        seed, progress
            As in :func:`clusterprune.oneshot`.
        """
        ...

    def planner(
        self, graph: ChannelGraph, images: Images | None, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Callable[[Keep], Plan]:  # fmt: skip
        """Return what plans for many budgets, having measured once whatever does not depend on them."""
        ...

    def foresee(
        self, graph: ChannelGraph, keep: Keep, images: int, memory_limit: float | None = None
    ) -> Foresight | None:
        """Check that the target can be met, and say what planning takes with so many images, where that is known.

        Parameters
        ----------
        memory_limit
            GiB that it may take.

        Raises
        ------
        BudgetError
            If the target, or the limit, cannot be met.
        """
        ...

    def layers_of(self, graph: ChannelGraph) -> ChannelGraph:
        """Return the graph with all frozen that this does not cut."""
        ...

    def narrow(self) -> "Cut":
        """Return the cut of the same widths that hands nothing over, for who needs the widths alone."""
        ...


def inner_layers(graph: ChannelGraph, *, tied: bool = False) -> ChannelGraph:
    """Return the graph with the papers' layers alone, in a bottleneck of one width or each of its own.

    Raises
    ------
    ArgumentError
        If there are none.
    """
    names = inner_groups(graph)
    if not names:
        raise ArgumentError(
            f"{type(graph.model).__name__} has no convolution inside a block that may be cut; print "
            "clusterprune.trace(model, example) to see why, ignore less, or set layers='all'"
        )
    return published_layers(graph) if tied else graph.only(names)


@dataclass(frozen=True)
class ClusterCut:
    """Clusters of channels; the defaults are those of ICP and ACP as released.

    Attributes
    ----------
    eps
        In place of a budget: ε of DBSCAN, how near channels of one cluster are. Published: 0.005 to 0.3.
    metric
        How mean feature maps are compared: "cosine" or "euclidean".
    min_samples
        MinPts of DBSCAN.
    clustering
        Another clustering than DBSCAN, by its name. Where it takes a number of clusters, the budget says how many.
    merging, survivors
        What the survivors take over, and who survives, as in :func:`clusterprune.cluster`. The released code drops all
        but the filters of largest ℓ1 norm.
    layers
        "inner", the papers' choice (:func:`clusterprune.inner_groups`, one width for a bottleneck), or "all" that may
        be cut.
    """

    readers: ClassVar[dict[str, Any]] = {"clustering": read_clustering}

    eps: float | None = option(None, "DISTANCE", panel=BUDGET)
    metric: Literal["cosine", "euclidean"] = "cosine"
    min_samples: int = 5
    clustering: Clustering | None = None
    merging: MergingName = "drop"
    survivors: Literal["medoid", "l1"] = "l1"
    layers: Layers = "inner"

    def __post_init__(self) -> None:
        """Check what needs no network."""
        _check_layers(self.layers)
        DBSCAN(eps=0.5 if self.eps is None else self.eps, min_samples=self.min_samples)

    def check(self, keep: Keep) -> None:
        """Check that one thing says how much is cut."""
        if self.clustering is not None and self.eps is not None:
            raise ArgumentError(f"eps={self.eps!r} is DBSCAN's; leave it out with clustering={self.clustering!r}")
        if self.clustering is None and (self.eps is None) == (keep.macs is None):
            raise ArgumentError(
                f"give either eps or keep_macs, but got eps={self.eps!r} and keep_macs={keep.macs!r}; the papers' eps "
                "is between 0.005 and 0.3"
            )
        if keep.macs is not None:
            check_fraction("keep_macs", keep.macs)

    def plan(
        self, graph: ChannelGraph, images: Images | None, keep: Keep, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Plan:  # fmt: skip
        """Return the plan of clusters and noise points."""
        del targets, task
        usual = DBSCAN(eps=0.5 if self.eps is None else self.eps, min_samples=self.min_samples)
        return cluster(
            self.layers_of(graph), images, similarity=FeatureMaps(self.metric), clustering=self.clustering or usual,
            merging=self.merging, survivors=self.survivors, seed=seed, progress=progress,
            keep_macs=keep.macs, keep_params=keep.params, round_to=keep.round_to, min_width=keep.min_width,
        )  # fmt: skip

    def planner(
        self, graph: ChannelGraph, images: Images | None, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Callable[[Keep], Plan]:  # fmt: skip
        """Return what plans for a budget; nothing is common to several."""
        return lambda keep: self.plan(graph, images, keep, targets=targets, task=task, seed=seed, progress=progress)

    def foresee(
        self, graph: ChannelGraph, keep: Keep, images: int, memory_limit: float | None = None
    ) -> Foresight | None:
        """Check nothing: what clusters can leave is known only from images."""
        del graph, keep, images, memory_limit
        return None

    def layers_of(self, graph: ChannelGraph) -> ChannelGraph:
        """Return the graph as it is cut."""
        return inner_layers(graph, tied=True) if self.layers == "inner" else graph

    def narrow(self) -> "ClusterCut":
        """Return the cut that drops."""
        return replace(self, merging="drop", survivors="l1")


@dataclass(frozen=True)
class OneShotCut(OneShot):
    """All that the one-shot compressor knows: :class:`clusterprune.OneShot`, and which layers it cuts.

    Attributes
    ----------
    layers
        "all" that may be cut, or "inner": the papers' choice (:func:`clusterprune.inner_groups`), with one width for a
        bottleneck.
    """

    layers: Layers = "all"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        _check_layers(self.layers)

    def check(self, keep: Keep) -> None:
        """Check that there is a budget."""
        keep.check()

    def plan(
        self, graph: ChannelGraph, images: Images | None, keep: Keep, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Plan:  # fmt: skip
        """Return the plan of :func:`clusterprune.oneshot`."""
        del targets
        common: dict[str, Any] = {"config": self, "seed": seed, "divergence": task, "progress": progress}
        return oneshot(self.layers_of(graph), images, **common, **keep.arguments())

    def planner(
        self, graph: ChannelGraph, images: Images | None, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Callable[[Keep], Plan]:  # fmt: skip
        """Return :meth:`clusterprune.Planner.plan` of a network that is measured here."""
        del targets
        made = measure(self.layers_of(graph), images, config=self, seed=seed, divergence=task, progress=progress)
        return lambda keep: made.plan(progress=progress, **keep.arguments())

    def foresee(
        self, graph: ChannelGraph, keep: Keep, images: int, memory_limit: float | None = None
    ) -> Foresight | None:
        """Check that the target can be met within the limit, and say what it takes."""
        part = self.layers_of(graph)
        check_reachable(CostModel(part), read_budget(keep.arguments()), part.prunable)
        if memory_limit is not None:
            check_memory(part, images, self, memory_limit)
        return foresee(part, images, self)

    def layers_of(self, graph: ChannelGraph) -> ChannelGraph:
        """Return the graph as it is cut."""
        return inner_layers(graph, tied=True) if self.layers == "inner" else graph

    def narrow(self) -> "OneShotCut":
        """Return the cut that does not refit."""
        return replace(self, refit=None)


@dataclass(frozen=True)
class CriterionCut:
    """A score per channel, and the lowest go; see :func:`clusterprune.prune_by`.

    Attributes
    ----------
    criterion
        Which score.
    scope
        "local": every group keeps the same fraction. "global": one order over all groups.
    merging
        What the kept channels take over: nothing ("drop", as published), or what "least_squares" or "refit" finds.
    layers
        "all" that may be cut, or "inner": the papers' choice (:func:`clusterprune.inner_groups`).
    """

    criterion: CriterionName = fixed("l1")  # noqa: RUF009 (a field)
    scope: Scope = "local"
    merging: FreeMergingName = "drop"
    layers: Layers = "all"

    def __post_init__(self) -> None:
        """Check the layers; the rest is checked by whoever cuts."""
        _check_layers(self.layers)

    def check(self, keep: Keep) -> None:
        """Check that there is a budget."""
        keep.check()

    def plan(
        self, graph: ChannelGraph, images: Images | None, keep: Keep, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Plan:  # fmt: skip
        """Return the plan of :func:`clusterprune.prune_by`."""
        return prune_by(
            self.layers_of(graph), self.criterion, images=images, labels=targets, task=task, scope=self.scope,
            merging=self.merging, seed=seed, progress=progress, **keep.arguments(),
        )  # fmt: skip

    def planner(
        self, graph: ChannelGraph, images: Images | None, *, targets: Targets | None = None,
        task: Aim | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> Callable[[Keep], Plan]:  # fmt: skip
        """Return what plans for a budget; nothing is common to several."""
        return lambda keep: self.plan(graph, images, keep, targets=targets, task=task, seed=seed, progress=progress)

    def foresee(
        self, graph: ChannelGraph, keep: Keep, images: int, memory_limit: float | None = None
    ) -> Foresight | None:
        """Check that the target can be met."""
        del images, memory_limit
        part = self.layers_of(graph)
        check_reachable(CostModel(part), read_budget(keep.arguments()), part.prunable)
        return None

    def layers_of(self, graph: ChannelGraph) -> ChannelGraph:
        """Return the graph as it is cut."""
        return inner_layers(graph) if self.layers == "inner" else graph

    def narrow(self) -> "CriterionCut":
        """Return the cut that drops."""
        return replace(self, merging="drop")


def _check_layers(layers: Sequence[str]) -> None:
    if layers not in ("inner", "all"):
        raise ArgumentError(f"layers must be 'inner' or 'all', but got layers={shown(layers)}")


CUTS: dict[str, type[Any]] = {"clusters": ClusterCut, "oneshot": OneShotCut}
"""The cuts that a method may take by name."""
