"""What a compression is asked for: the target, the plan that meets it, and whether it was met."""

import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from clusterprune.budget.allocation import CLOSE, CostModel, Quantity, check_fraction
from clusterprune.errors import ArgumentError, BudgetError, BudgetWarning
from clusterprune.plan import Plan
from clusterprune.surgery.summary import left_by

Target = Quantity | Literal["latency"]


def read_target(macs: float | None, params: float | None, latency: float | None) -> tuple[Target, float]:
    """Return the one target that was given, and the fraction to keep."""
    targets: list[tuple[Target, float | None]] = [("macs", macs), ("params", params), ("latency", latency)]
    given: dict[Target, float] = {name: value for name, value in targets if value is not None}
    if len(given) != 1:
        raise ArgumentError(
            "give exactly one of keep_macs, keep_params and keep_latency, "
            f"but got {', '.join(f'keep_{k}={v}' for k, v in given.items()) or 'none'}"
        )
    ((quantity, keep),) = given.items()
    check_fraction(f"keep_{quantity}", keep)
    return quantity, keep


def plan_for_budget(
    cost: CostModel, shares: Mapping[Quantity, float], plan_at: Callable[[Mapping[Quantity, float]], Plan]
) -> Plan:
    """Return a plan whose compact network has the asked shares of MACs and parameters, counted on its own tensors.

    Parameters
    ----------
    shares
        The fraction that may be left, by what is counted. Of several, all hold.
    plan_at
        Makes the plan for shares as the cost model counts them. Where the compact network costs something else (biases
        that it is given, channels that count more than others of their group), other shares are asked for.

    Raises
    ------
    BudgetError
        If a share is exceeded by more than 1 %. Where all are missed from below, a :class:`BudgetWarning` says so.
    """
    asked: Mapping[Quantity, float] = shares
    best = (np.inf, None)
    for _ in range(3):
        plan = plan_at(asked)
        got = {quantity: kept_share(cost, quantity, plan) for quantity in shares}
        off = {quantity: got[quantity] - _modelled(cost, quantity, plan) for quantity in shares}
        # Of several, the one that is used up most decides.
        tight = max(shares, key=lambda quantity: got[quantity] / shares[quantity])
        away, keep = abs(got[tight] - shares[tight]), shares[tight]
        best = min(best, (away, plan), key=lambda found: found[0])
        settled = abs(asked[tight] + off[tight] - keep) <= 1e-3 * keep
        if away <= CLOSE * keep or settled or not all(0 < shares[q] - off[q] <= 1 for q in shares):
            break
        less: dict[Quantity, float] = {quantity: share - off[quantity] for quantity, share in shares.items()}
        asked = less
    plan = best[1]
    assert plan is not None  # noqa: S101 (the loop ran; for the type checker)
    tight = max(shares, key=lambda quantity: kept_share(cost, quantity, plan) / shares[quantity])
    for quantity, keep in shares.items():
        if quantity == tight or kept_share(cost, quantity, plan) > keep:
            check_plan(cost, quantity, keep, plan)
    return plan


def check_plan(cost: CostModel, quantity: Quantity, keep: float, plan: Plan) -> None:
    """Say so if what a plan leaves misses a target by more than 1 %; see :func:`check_met`."""
    got = kept_share(cost, quantity, plan)
    check_met(quantity, keep, got, _coarsest(cost, quantity, plan) if got < keep else "")


def check_met(quantity: Quantity, keep: float, got: float, why: str) -> None:
    """Say so if a share of MACs or parameters was missed by more than 1 %.

    Raises
    ------
    BudgetError
        If more is left than was asked for. If less is, a :class:`BudgetWarning` is given.
    """
    told = f"keep_{quantity}={keep:g} was asked for, but {got:.4g} of the {quantity} are left"
    if got > keep * (1 + CLOSE):
        raise BudgetError(f"{told}; ask for less, or print the graph to see what is frozen and why")
    if got < keep * (1 - CLOSE):
        warnings.warn(f"{told}{': ' if why else ''}{why}", BudgetWarning, stacklevel=3)


def kept_share(cost: CostModel, quantity: Quantity, plan: Plan) -> float:
    """Return the share of the MACs or parameters that a plan leaves, its new biases included."""
    return left_by(cost, quantity, plan) / cost.total(quantity)


def _modelled(cost: CostModel, quantity: Quantity, plan: Plan) -> float:
    return cost.total(quantity, cost.with_widths(plan.widths)) / cost.total(quantity)


def _coarsest(cost: CostModel, quantity: Quantity, plan: Plan) -> str:
    """Say which channel is the cheapest to put back, and how much it is worth."""
    widths = cost.with_widths(plan.widths)
    steps = _steps(cost, quantity, widths)
    if not steps:
        return ""
    name = min(steps, key=lambda group: (steps[group], group))
    return f"the finest step that would put something back, in {name}, is worth {steps[name]:.1%} of the {quantity}"


def _steps(cost: CostModel, quantity: Quantity, widths: np.ndarray) -> Mapping[str, float]:
    """Return for every group that is cut what its next channels (one of each block) are worth, as a share."""
    steps: dict[str, float] = {}
    for index, group in enumerate(cost.graph.groups):
        if widths[index] < group.width:
            wider = widths.copy()
            wider[index] += group.n_blocks
            worth = cost.total(quantity, wider) - cost.total(quantity, widths)
            steps[group.name] = worth / cost.total(quantity)
    return steps
