"""Several targets at once, such as MACs and parameters: widths that meet them all."""

from collections.abc import Mapping
from itertools import permutations

import numpy as np

from clusterprune.budget.allocation import CostModel, Limits, Quantity, solve


def solve_all(
    cost: CostModel, losses: Mapping[str, np.ndarray], targets: Mapping[Quantity, float], limits: Limits | None = None
) -> dict[str, int]:
    """Share several budgets among groups; see :func:`clusterprune.budget.allocation.solve`.

    They are met one after the other: what the one before has removed costs nothing any more. Of all orders, the widths
    that lose least count.

    Parameters
    ----------
    targets
        To which fraction of the original each quantity is reduced. Without any, nothing is cut.

    Raises
    ------
    BudgetError
        If one of them is below what is reachable.
    """
    whole = {name: cost.graph.by_name[name].width for name in losses}
    found: list[tuple[float, dict[str, int]]] = []
    for order in permutations(targets.items()):
        widths = whole
        for quantity, keep in order:
            left = {name: _after(losses[name], whole[name] - width) for name, width in widths.items()}
            solved = solve(cost, left, quantity, keep, limits)
            widths = {name: min(width, solved[name]) for name, width in widths.items()}
        loss = sum(float(losses[name][whole[name] - width]) for name, width in widths.items())
        found.append((loss, widths))
    return min(found, key=lambda one: one[0])[1]


def _after(losses: np.ndarray, removed: int) -> np.ndarray:
    """Return what removals lose beyond a number of them that have taken place."""
    return losses if not removed else np.maximum(np.asarray(losses, dtype=float) - losses[removed], 0.0)
