"""How many channels to keep: a target, shared among all groups together.

What widths cost is in :mod:`clusterprune.budget.cost`, and which are allowed in :mod:`clusterprune.budget.limits`.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from clusterprune.arguments import check_number
from clusterprune.budget.cost import CostModel, Quantity, Table
from clusterprune.budget.limits import FINER, Limits
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph

__all__ = ["CostModel", "Limits", "Quantity", "check_fraction", "example_batch", "reachable", "solve"]

_OVERSHOOT = 0.005
"""How far below its target a budget may end, as a fraction, while finer steps are left."""
_NEARLY = 10.0
"""How much dearer per unit of cost such a finer step may be."""
_MUCH = 100.0
"""The same where a whole coarse step is taken back for finer ones, because it missed the target."""
_ROUNDING = 1e-9
CLOSE = 0.01
"""Relative distance to a target up to which it counts as met."""
_UNDONE = 16
"""How many coarse steps are tried to be replaced by finer ones, and by how many of these at most."""
_FINER = 32


def solve(
    cost: CostModel, losses: Mapping[str, np.ndarray], quantity: Quantity, keep: float, limits: Limits | None = None
) -> dict[str, int]:
    """Share a budget among groups so that the loss is least.

    Every group's loss curve is replaced by its lower convex hull; then, as in a fractional knapsack, the
    step with the least loss per unit of cost is taken until the target is met, and the last overshoot is
    given back where that is worth most. Groups whose widths are linked (:attr:`ChannelGraph.links`) move together.

    Parameters
    ----------
    losses
        By group name: loss after 0, 1, 2, … removals.
    quantity, keep
        What to reduce, and to which fraction of the original, in (0, 1].

    Returns
    -------
    dict
        Kept width by group name, for every group in `losses`.

    Raises
    ------
    BudgetError
        If the target is below what is reachable; the message states the reachable minimum.
    """
    limits = limits or Limits()
    check_fraction(f"keep_{quantity}", keep)
    target = keep * cost.total(quantity)
    search = _Search(cost, quantity, _units(cost.graph, losses, limits), target)
    if not search.run():
        # Rounded up, so that the number in the message can be asked for.
        least = np.ceil(search.total / cost.total(quantity) * 1e4) / 1e4
        raise BudgetError(
            f"keep_{quantity}={keep:g} is below what can be reached: with every group at its minimum "
            f"{least:.4g} of the {quantity} remain. Ask for keep_{quantity}>={least:.4g}, or lower min_width "
            "or round_to, or leave fewer groups alone."
        )
    for step in FINER if limits.aligned else ():
        search.top_up(_units(cost.graph, losses, replace(limits, finest=step)))
    return {name: unit.ladder[unit.rung][0] for unit in search.units for name in unit.names}


@dataclass(eq=False)
class _Unit:
    """Groups that keep equally many channels, most often one; and how far down its ladder it is."""

    names: tuple[str, ...]
    ladder: list[tuple[int, float]]
    rung: int = 0

    @property
    def last(self) -> bool:
        """Whether it is at its minimum."""
        return self.rung == len(self.ladder) - 1


def _units(graph: ChannelGraph, losses: Mapping[str, np.ndarray], limits: Limits) -> list[_Unit]:
    """Put linked groups together; everything else is on its own."""
    units = []
    for names in linked(graph, losses):
        choices = limits.choices_of(graph, *(graph.by_name[name] for name in names))
        shortest = min(len(losses[name]) for name in names)
        loss = sum((np.asarray(losses[name], dtype=float)[:shortest] for name in names), np.zeros(shortest))
        units.append(_Unit(names, _ladder(choices, loss)))
    return units


def linked(graph: ChannelGraph, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Put the named groups whose widths are linked together, in the order of the names; the others stay alone."""
    names = list(names)
    together: dict[str, tuple[str, ...]] = {}
    for link in graph.links:
        if link <= set(names):
            together |= dict.fromkeys(link, tuple(name for name in names if name in link))
    return list(dict.fromkeys(together.get(name, (name,)) for name in names))


class _Search:
    """Widths on their way down, with every number that a step changes kept up to date.

    A step touches the few products that its group is in, so only these are computed anew. Rates only rise while widths
    fall (the cost of one more channel grows with every other width, and ladders are convex), so the cheapest step is
    found on a heap whose entries are corrected when they come up.
    """

    def __init__(self, cost: CostModel, quantity: Quantity, units: list[_Unit], target: float) -> None:
        self.units, self.target = units, target
        table = cost.tables[quantity]
        self.values = table.values(cost.widths)
        self.total = table.total(cost.widths)
        index = {group.name: position for position, group in enumerate(cost.graph.groups)}
        self.parts = [_Part.of(table, [index[name] for name in unit.names]) for unit in units]
        self.heap = [(self.rate(number), unit.names[0], number) for number, unit in enumerate(units) if not unit.last]
        heapq.heapify(self.heap)

    def run(self) -> bool:
        """Take the cheapest steps until the target is met; tell whether it was."""
        while self.total > self.target * (1 + _ROUNDING):
            if not self.heap:
                return False
            self.step(self.next_unit())
        self.give_back()
        if self.total < self.target * (1 - CLOSE):
            self.refine()
        return True

    def rate(self, number: int) -> float:
        """Return the loss of a unit's next step, for each unit of cost that it saves."""
        unit = self.units[number]
        return unit.ladder[unit.rung + 1][1] / max(self.parts[number].gradient(self.values), 1e-12)

    def pop(self) -> tuple[float, str, int] | None:
        """Take the unit with the cheapest next step off the heap."""
        while self.heap:
            stated, name, number = heapq.heappop(self.heap)
            rate = self.rate(number)
            if rate <= stated or not self.heap or (rate, name) <= self.heap[0][:2]:
                return rate, name, number
            heapq.heappush(self.heap, (rate, name, number))
        return None

    def next_unit(self) -> int:
        """Return the unit with the cheapest step, or one nearly as cheap that does not shoot past the target.

        One channel of a residual stream can be worth percents; finer groups make up the last of them.
        """
        seen, chosen = [], None
        while chosen is None and (found := self.pop()) is not None:
            seen.append(found)
            if found[0] > _NEARLY * seen[0][0]:
                break
            if self.after(found[2], down=True) >= self.target * (1 - _OVERSHOOT):
                chosen = found
        chosen = chosen or seen[0]
        for entry in seen:
            if entry is not chosen:
                heapq.heappush(self.heap, entry)
        return chosen[2]

    def after(self, number: int, *, down: bool) -> float:
        """Return the total after a unit's next step, or without its last one."""
        unit, part = self.units[number], self.parts[number]
        change = unit.ladder[unit.rung + (1 if down else -1)][0] - unit.ladder[unit.rung][0]
        return self.total + part.difference(self.values, change)

    def step(self, number: int, *, down: bool = True) -> None:
        """Take a unit's next step, or its last one back."""
        unit, part = self.units[number], self.parts[number]
        place = unit.rung + (1 if down else -1)
        change = unit.ladder[place][0] - unit.ladder[unit.rung][0]
        self.total += part.difference(self.values, change)
        self.values[part.touched] += part.multiples * change
        unit.rung = place
        if down and not unit.last:
            heapq.heappush(self.heap, (self.rate(number), unit.names[0], number))

    def give_back(self) -> None:
        """Undo the dearest steps that fit into what the last step saved too much."""
        candidates = [number for number, unit in enumerate(self.units) if unit.rung]
        while candidates:
            # What does not fit now does not fit later: the total only rises.
            limit = self.target * (1 + _ROUNDING)
            candidates = [n for n in candidates if self.units[n].rung and self.after(n, down=False) <= limit]
            if candidates:
                self.step(max(candidates, key=self._last_loss), down=False)

    def refine(self) -> None:
        """Where a coarse step has left too much of the budget unused, take it back and finer, dearer ones instead.

        Of all coarse steps with which that comes close to the target, the one whose replacement loses least.
        """
        start = self._state()
        best: tuple[float, Any] | None = None
        coarse = sorted((n for n, unit in enumerate(self.units) if unit.rung), key=self._last_loss, reverse=True)
        for number in coarse[:_UNDONE]:
            lost = -self._loss(number)
            self.step(number, down=False)
            dearest = _MUCH * self.rate(number)
            for _ in range(_FINER):
                if self.total <= self.target * (1 + _ROUNDING):
                    break
                finer = [
                    n
                    for n, unit in enumerate(self.units)
                    if n != number
                    and not unit.last
                    and self.rate(n) <= dearest
                    and self.after(n, down=True) >= self.target * (1 - CLOSE)
                ]
                if not finer:
                    break
                cheapest = min(finer, key=lambda n: (self.rate(n), self.units[n].names[0]))
                self.step(cheapest)
                lost += self._loss(cheapest)
            inside = self.target * (1 - CLOSE) <= self.total <= self.target * (1 + _ROUNDING)
            if inside and (best is None or lost < best[0]):
                best = lost, self._state()
            self._restore(start)
        if best is not None:
            self._restore(best[1])

    def top_up(self, finer: Sequence[_Unit]) -> None:
        """Where coarse steps leave too much of the budget unused, widen as few units as will do by finer ones."""
        for unit, other in zip(self.units, finer, strict=True):
            width, rungs = unit.ladder[unit.rung][0], [kept for kept, _ in other.ladder]
            if width in rungs:
                unit.ladder, unit.rung = other.ladder, rungs.index(width)
        while self.total < self.target * (1 - CLOSE):
            wider = {number: self.after(number, down=False) for number, unit in enumerate(self.units) if unit.rung}
            wider = {number: total for number, total in wider.items() if total <= self.target * (1 + _ROUNDING)}
            if not wider:
                self.refine()
                break
            self.step(max(wider, key=lambda number: wider[number]), down=False)

    def _loss(self, number: int) -> float:
        """Return what a unit's last step lost."""
        unit = self.units[number]
        return unit.ladder[unit.rung][1] * (unit.ladder[unit.rung - 1][0] - unit.ladder[unit.rung][0])

    def _state(self) -> Any:
        return self.total, self.values.copy(), [unit.rung for unit in self.units]

    def _restore(self, state: Any) -> None:
        self.total, self.values = state[0], state[1].copy()
        for unit, rung in zip(self.units, state[2], strict=True):
            unit.rung = rung

    def _last_loss(self, number: int) -> tuple[float, str]:
        unit = self.units[number]
        return unit.ladder[unit.rung][1], unit.names[0]


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a table that some groups, moving together, have a part in.

    Attributes
    ----------
    touched, multiples
        Factors in which they count, and by how much one channel of each changes them: shape (touched,).
    scales, factors
        Products with such a factor.
    slopes, others
        The derivative by a channel of each group: sum of slopes · product of the other factors.
    """

    touched: np.ndarray
    multiples: np.ndarray
    scales: np.ndarray
    factors: np.ndarray
    slopes: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, table: Table, groups: Sequence[int]) -> "_Part":
        """Pick out of a table what some groups change."""
        multiples = table.multiples[:, list(groups)].sum(1)
        touched = np.flatnonzero(multiples)
        inside = np.flatnonzero((multiples[table.factors] != 0).any(1)) if len(table.scales) else np.empty(0, int)
        factors, scales = table.factors[inside], table.scales[inside]
        slopes, others = [], []
        for place in range(factors.shape[1]):
            slope = scales * multiples[factors[:, place]]
            slopes.append(slope[slope != 0])
            others.append(np.delete(factors, place, axis=1)[slope != 0])
        return cls(touched, multiples[touched], scales, factors, np.concatenate(slopes), np.concatenate(others))

    def gradient(self, values: np.ndarray) -> float:
        """Return the cost of one more channel in each of the groups."""
        return float(self.slopes @ values[self.others].prod(1))

    def difference(self, values: np.ndarray, change: int) -> float:
        """Return what a change of the widths costs."""
        before = values[self.factors].prod(1)
        changed = values.copy()
        changed[self.touched] += self.multiples * change
        return float(self.scales @ (changed[self.factors].prod(1) - before))


def check_fraction(name: str, value: float) -> None:
    """Check that a budget is a fraction.

    Raises
    ------
    ArgumentError
        If it is not in (0, 1].
    """
    check_number(name, value)
    if not 0 < value <= 1:
        raise ArgumentError(f"{name} must be a fraction in (0, 1], but got {name}={value!r}; 0.5 keeps half")


def _ladder(choices: list[int], loss: np.ndarray) -> list[tuple[int, float]]:
    """Return (kept width, marginal loss per channel to get there), on the lower convex hull of the curve."""
    width = choices[0]
    kept = [k for k in choices if width - k < len(loss)]
    removed = np.array([width - k for k in kept], dtype=float)
    value = np.array([loss[width - k] for k in kept])
    hull = [0]
    for i in range(1, len(kept)):
        while len(hull) > 1 and _slope(removed, value, hull[-2], hull[-1]) >= _slope(removed, value, hull[-2], i):
            hull.pop()
        hull.append(i)
    ladder = [(kept[0], 0.0)]
    for left, right in pairwise(hull):
        slope = max(_slope(removed, value, left, right), 0.0)
        ladder += [(kept[i], slope) for i in range(left + 1, right + 1)]
    return ladder


def _slope(x: np.ndarray, y: np.ndarray, left: int, right: int) -> float:
    return float((y[right] - y[left]) / (x[right] - x[left]))


def reachable(cost: CostModel, quantity: Quantity, limits: Limits | None = None) -> float:
    """Return the least fraction of a quantity that remains when every prunable group is at its minimum."""
    limits = limits or Limits()
    widths = cost.widths.copy()
    for position, group in enumerate(cost.graph.groups):
        if group.frozen is None:
            widths[position] = limits.choices_of(cost.graph, group)[-1]
    return cost.total(quantity, widths) / cost.total(quantity)


def example_batch(graph: ChannelGraph) -> int:
    """Return the batch size of the example (1 where it has no tensor)."""
    return next((int(a.shape[0]) for a in graph.args if isinstance(a, torch.Tensor) and a.ndim), 1)
