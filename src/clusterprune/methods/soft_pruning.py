# pyright: reportUnknownMemberType=false
"""Soft filter pruning (He et al. 2018, arXiv 1808.06866): zero the weakest filters after every epoch, train on.

A filter that training needs grows back and competes anew; what is zero at the end is dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune.budget.allocation import CostModel, Limits, Quantity
from clusterprune.budget.limits import AUTO, RoundTo
from clusterprune.criteria import L2, by_filter
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.methods._base import Method
from clusterprune.methods._settings import BUDGET, option
from clusterprune.methods._work import Network, Outcome, Work, trained_record
from clusterprune.methods.cuts import Keep, Layers, inner_layers
from clusterprune.methods.prune_by import best, share
from clusterprune.methods.targets import check_met, read_target
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.apply import apply
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig

SFP_TRAINING = TrainConfig(epochs=200, lr=0.01, schedule="step", milestones=(0.3, 0.6, 0.8), gamma=0.2)
"""After Zagoruyko & Komodakis 2016; a trained network begins at a tenth of their rate (He et al. 2018)."""


class SoftPruning:
    """An epoch hook for :func:`clusterprune.train.fit`; all groups keep the same fraction.

    With a filter go the γ and β of its batch norm, so that a zeroed channel is as good as removed. The gradient of
    such a channel is zero too: it is momentum that brings it back.

    Parameters
    ----------
    graph
        Trace of the model that is trained.
    keep_macs, keep_params
        Exactly one: the fraction that :meth:`finish` keeps, in (0, 1].
    round_to, min_width, ignore
        As in :func:`clusterprune.oneshot`.

    Raises
    ------
    ArgumentError, BudgetError
        If the target is no fraction, or cannot be reached.

    Examples
    --------
    >>> hook = SoftPruning(graph, keep_macs=0.5)                                # doctest: +SKIP
    >>> train.fit(model, task, config, hook=hook)                         # doctest: +SKIP
    >>> small = clusterprune.apply(model, hook.finish())                        # doctest: +SKIP
    """

    def __init__(
        self,
        graph: ChannelGraph,
        *,
        keep_macs: float | None = None,
        keep_params: float | None = None,
        round_to: RoundTo = AUTO,
        min_width: int = 1,
        ignore: Sequence[str] = (),
    ) -> None:
        self.graph = graph.freeze(ignore)
        target, keep = read_target(keep_macs, keep_params, None)
        quantity: Quantity = "params" if target == "params" else "macs"
        cost = CostModel(self.graph)
        self.widths = share(cost, None, {quantity: keep}, Limits(round_to, min_width))
        left = cost.total(quantity, cost.with_widths(self.widths)) / cost.total(quantity)
        check_met(quantity, keep, left, "finer steps than these widths there are none")

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Set to zero, in place, the filters that the widths leave no room for."""
        del epoch, epochs  # the paper prunes at full rate from the first epoch on
        parameters = dict(model.named_parameters())
        kept = self._kept(parameters)
        with torch.no_grad():
            for group in self.graph.prunable:
                gone = np.delete(np.arange(group.width), kept[group.name])
                for use in (*group.producers, *group.carriers):
                    if use.path in parameters:  # running statistics are none, and do no harm
                        tensor = parameters[use.path]
                        where = torch.from_numpy(use.positions[gone].ravel()).to(tensor.device)
                        tensor.index_fill_(use.dim, where, 0)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: which filters are zero stands in the weights."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Need nothing."""

    def finish(self) -> Plan:
        """Return the plan that drops the filters that are zero.

        The output does not change where zero stays zero on the way to the next layer, as it does through ReLU.
        """
        kept = self._kept(dict(self.graph.model.named_parameters()))
        merges = (Merge(g.name, kept[g.name]) for g in self.graph.prunable if len(kept[g.name]) < g.width)
        return replace(Plan.of(self.graph, tuple(merges)), notes={"method": "soft pruning"})

    def _kept(self, parameters: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        lost = [use.path for g in self.graph.prunable for use in g.producers if use.path not in parameters]
        if lost:
            raise ArgumentError(f"model has no parameter {lost[0]}; train the model that the graph was traced from")
        norms = by_filter(L2().measure, self.graph.prunable, parameters)
        return {g.name: best(g, norms[g.name].cpu().numpy(), self.widths[g.name]) for g in self.graph.prunable}


@dataclass(frozen=True)
class Soft(Method):
    """Zero the weakest filters after every epoch, and drop what is zero at the end.

    Attributes
    ----------
    keep_macs
        Share of the multiply-adds to keep.
    keep_params
        Share of the parameters to keep.
    layers
        "all" that may be cut, or "inner": the papers' choice (:func:`clusterprune.inner_groups`).
    round_to
        Keep multiples of so many channels; "auto": of 8, 4, 2 or 1, by how wide a group is, which run fast.
    min_width
        Keep at least so many channels of a group.
    ignore
        Layers or groups of these names, or globs, are left alone.
    scratch
        Train from random weights.
    """

    name: ClassVar[str] = "sfp"
    training: ClassVar[TrainConfig | None] = SFP_TRAINING

    keep_macs: float | None = option(None, "SHARE", panel=BUDGET)
    keep_params: float | None = option(None, "SHARE", panel=BUDGET)
    layers: Layers = "all"
    round_to: RoundTo = option(AUTO, "N|auto")  # noqa: RUF009 (a field)
    min_width: int = option(1, "N")
    ignore: tuple[str, ...] = option((), "GLOB")
    scratch: bool = False

    def __post_init__(self) -> None:
        """Check the target."""
        Keep(self.keep_macs, self.keep_params).check()

    def compress(self, network: Network, task: Task, work: Work) -> Outcome:
        """Train with soft pruning, then drop what is zero."""
        model = network.copy(work.seed if self.scratch else None)
        graph = replace(network, model=model).graph()
        hook = SoftPruning(
            inner_layers(graph) if self.layers == "inner" else graph,
            keep_macs=self.keep_macs, keep_params=self.keep_params, round_to=self.round_to, min_width=self.min_width,
            ignore=self.ignore,
        )  # fmt: skip
        trained = work.fit(model, task, "train and prune", hook=hook)
        small = apply(model.eval(), hook.finish(), graph=replace(network, model=model).graph())
        return Outcome(small.eval(), None, None, trained_record(trained))
