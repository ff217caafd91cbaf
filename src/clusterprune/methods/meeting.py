"""The plan that meets a budget, whatever it is of: MACs, parameters, time, or several of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from clusterprune.budget.allocation import CostModel, Quantity
from clusterprune.budget.several import solve_all
from clusterprune.errors import BudgetError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Progress
from clusterprune.methods.budget import Goal
from clusterprune.methods.latency import plan_for_latency
from clusterprune.methods.targets import CLOSE, check_plan, kept_share, plan_for_budget
from clusterprune.plan import Plan


def check_reachable(cost: CostModel, goal: Goal, groups: Iterable[Group]) -> None:
    """Check that a budget can be met at all: any loss curves tell, so that nothing need be measured for this.

    Parameters
    ----------
    groups
        Those that may be cut. What a time needs is known only by measuring.

    Raises
    ------
    BudgetError
        If it cannot.
    """
    curves = {group.name: np.arange(group.width - group.n_blocks + 1.0) for group in groups}
    try:
        solve_all(cost, curves, goal.shares(cost), goal.limits)
    except BudgetError as error:
        raise BudgetError(f"{goal}: {error}") from None


def plan_for(
    graph: ChannelGraph,
    cost: CostModel,
    goal: Goal,
    plan_at: Callable[[Mapping[Quantity, float]], Plan],
    progress: Progress | None,
) -> tuple[Plan, dict[str, Any]]:
    """Return the plan of a budget, and what was measured on the way to a time.

    Parameters
    ----------
    plan_at
        Makes the plan that leaves no more than these fractions, as the cost model counts them.

    Raises
    ------
    BudgetError
        If no plan meets it.
    """
    counted = goal.shares(cost)
    if not goal.timed:
        return plan_for_budget(cost, counted, plan_at), {}

    def at(fraction: float, what: Quantity) -> Plan:
        return plan_at({**counted, what: min(fraction, counted.get(what, 1.0))})

    plan, facts = plan_for_latency(graph, cost, goal.time_share, at, goal.clock, progress)
    for quantity, keep in counted.items():
        if kept_share(cost, quantity, plan) > keep * (1 + CLOSE):
            check_plan(cost, quantity, keep, plan)
    return plan, {"latency": facts}
