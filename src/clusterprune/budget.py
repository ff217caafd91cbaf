"""How many channels to keep: what widths cost, and how a target is shared among all groups together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from clusterprune.arguments import check_number
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph

Quantity = Literal["macs", "params"]

_OVERSHOOT = 0.005
"""How far below its target a budget may end, as a fraction, while finer steps are left."""
_NEARLY = 10.0
"""How much dearer per unit of cost such a finer step may be."""


class CostModel:
    """MACs and parameters of a network as functions of its groups' widths.

    A layer costs (positions · kernel / groups) · inputs · outputs multiply-adds, and both inputs and outputs
    are sums of group widths, so totals and derivatives are exact. One multiply-add counts as one.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        """Read every layer call's geometry off the graph."""
        self.graph = graph
        self.widths = np.array([group.width for group in graph.groups], dtype=float)
        owners: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for index, group in enumerate(graph.groups):
            for use in group.uses:
                owners.setdefault((use.path, use.dim), []).append((index, use.positions.shape[1]))
        nodes = {node.name: node for node in graph.fx.nodes}
        self._macs: list[_Product] = []
        self._params: list[_Product] = []
        counted: set[str] = set()
        for call in graph.calls:
            node = nodes[call.node]
            weight = tuple(int(s) for s in node.args[1].meta["val"].shape)
            made = node.meta["val"].shape if call.kind != "conv_transpose" else node.args[0].meta["val"].shape
            channel_dim = 1 if call.kind.startswith("conv") and len(made) == len(weight) else len(made) - 1
            positions = float(np.prod([int(s) for d, s in enumerate(made) if d != channel_dim]))
            kernel = float(np.prod(weight[2:]))
            row_dim, column_dim = (1, 0) if call.kind in ("conv_transpose", "matmul") else (0, 1)
            rows = _Sum.of(weight[row_dim], owners.get((call.weight, row_dim), []), self.widths)
            if call.depthwise:
                rows = _Sum.of(weight[0], owners.get((call.weight, 0), []), self.widths)
                columns = _Sum.of(weight[1], [], self.widths)
                groups = 1
            else:
                groups = call.groups if call.kind == "conv" else 1
                columns = _Sum.of(weight[column_dim] * groups, owners.get((call.weight, column_dim), []), self.widths)
            self._macs.append(_Product(positions * kernel / groups, rows, columns))
            if call.weight not in counted:
                counted.add(call.weight)
                self._params.append(_Product(kernel / groups, rows, columns))
        layer_weights = {call.weight for call in graph.calls}
        one = _Sum(1.0, ())
        for path, parameter in graph.model.named_parameters():
            if path in layer_weights:
                continue
            dims = [dim for dim in range(parameter.ndim) if (path, dim) in owners]
            if dims:
                rest = parameter.numel() / parameter.shape[dims[0]]
                along = _Sum.of(parameter.shape[dims[0]], owners[path, dims[0]], self.widths)
                self._params.append(_Product(rest, along, one))
            else:
                self._params.append(_Product(float(parameter.numel()), one, one))

    def total(self, quantity: Quantity, widths: np.ndarray | None = None) -> float:
        """Return MACs (of the example's batch) or parameters at the given widths (default: as they are)."""
        widths = self.widths if widths is None else widths
        return sum(product.value(widths) for product in self._table(quantity))

    def with_widths(self, widths: Mapping[str, int]) -> np.ndarray:
        """Return the width of every group, in the graph's order: the given ones, and the others as they are."""
        return np.array([widths.get(group.name, group.width) for group in self.graph.groups], dtype=float)

    def gradient(self, quantity: Quantity, widths: np.ndarray) -> np.ndarray:
        """Return the cost of one more channel in every group, at the given widths."""
        result = np.zeros(len(widths))
        for product in self._table(quantity):
            rows, columns = product.rows.value(widths), product.columns.value(widths)
            for index, multiplicity in product.rows.terms:
                result[index] += product.scale * multiplicity * columns
            for index, multiplicity in product.columns.terms:
                result[index] += product.scale * multiplicity * rows
        return result

    def _table(self, quantity: Quantity) -> list["_Product"]:
        return self._macs if quantity == "macs" else self._params


@dataclass(frozen=True)
class _Sum:
    """A width that is a constant plus multiples of group widths."""

    constant: float
    terms: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, size: int, terms: Sequence[tuple[int, int]], widths: np.ndarray) -> "_Sum":
        return cls(size - sum(widths[i] * m for i, m in terms), tuple(terms))

    def value(self, widths: np.ndarray) -> float:
        return self.constant + sum(widths[i] * m for i, m in self.terms)


@dataclass(frozen=True)
class _Product:
    scale: float
    rows: _Sum
    columns: _Sum

    def value(self, widths: np.ndarray) -> float:
        return self.scale * self.rows.value(widths) * self.columns.value(widths)


@dataclass(frozen=True)
class Limits:
    """What widths are allowed.

    Attributes
    ----------
    round_to
        Kept widths are multiples of this (a group that stays whole is exempt).
    min_width
        Least channels in any group, or the group's own width if that is smaller.
    """

    round_to: int = 1
    min_width: int = 1

    def __post_init__(self) -> None:
        """Check both numbers."""
        for name in ("round_to", "min_width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name} must be a whole number of at least 1, but got {name}={value!r}")

    def choices(self, width: int, n_blocks: int) -> list[int]:
        """Return the allowed kept widths of a group, widest first."""
        step = int(np.lcm(self.round_to, n_blocks))
        least = max(min(self.min_width, width), n_blocks)
        return [width] + [k for k in range(width - 1, 0, -1) if k % step == 0 and k >= least]


def solve(
    cost: CostModel, losses: Mapping[str, np.ndarray], quantity: Quantity, keep: float, limits: Limits | None = None
) -> dict[str, int]:
    """Share a budget among groups so that the loss is least.

    Every group's loss curve is replaced by its lower convex hull; then, as in a fractional knapsack, the
    step with the least loss per unit of cost is taken until the target is met, and the last overshoot is
    given back where that is worth most.

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
    index = {group.name: position for position, group in enumerate(cost.graph.groups)}
    groups = cost.graph.by_name
    ladders = {name: _ladder(groups[name].width, groups[name].n_blocks, loss, limits) for name, loss in losses.items()}
    widths = cost.widths.copy()
    target = keep * cost.total(quantity)
    rung = dict.fromkeys(ladders, 0)
    while cost.total(quantity, widths) > target * (1 + 1e-9):
        gradient = cost.gradient(quantity, widths)
        rates = {
            name: ladder[rung[name] + 1][1] / max(gradient[index[name]], 1e-12)
            for name, ladder in ladders.items()
            if rung[name] < len(ladder) - 1
        }
        if not rates:
            least = cost.total(quantity, widths) / cost.total(quantity)
            # Rounded up, so that the number in the message can be asked for.
            least = np.ceil(least * 1e4) / 1e4
            raise BudgetError(
                f"keep_{quantity}={keep:g} is below what can be reached: with every group at its minimum "
                f"{least:.4g} of the {quantity} remain. Ask for keep_{quantity}>={least:.4g}, or lower min_width "
                "or round_to, or leave fewer groups alone."
            )
        chosen = _next_step(cost, quantity, widths, target, ladders, rung, index, rates)
        rung[chosen] += 1
        widths[index[chosen]] = ladders[chosen][rung[chosen]][0]
    _give_back(cost, quantity, widths, target, ladders, rung, index)
    return {name: ladder[rung[name]][0] for name, ladder in ladders.items()}


def _next_step(
    cost: CostModel,
    quantity: Quantity,
    widths: np.ndarray,
    target: float,
    ladders: Mapping[str, list[tuple[int, float]]],
    rung: Mapping[str, int],
    index: Mapping[str, int],
    rates: Mapping[str, float],
) -> str:
    """Return the group with the cheapest step, or one nearly as cheap that does not shoot past the target.

    One channel of a residual stream can be worth percents; finer groups make up the last of them.
    """
    by_rate = sorted(rates, key=lambda name: (rates[name], name))
    for name in by_rate:
        if rates[name] > _NEARLY * rates[by_rate[0]]:
            break
        trial = widths.copy()
        trial[index[name]] = ladders[name][rung[name] + 1][0]
        if cost.total(quantity, trial) >= target * (1 - _OVERSHOOT):
            return name
    return by_rate[0]


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


def _give_back(
    cost: CostModel,
    quantity: Quantity,
    widths: np.ndarray,
    target: float,
    ladders: Mapping[str, list[tuple[int, float]]],
    rung: dict[str, int],
    index: Mapping[str, int],
) -> None:
    """Undo the dearest steps that fit into what the last step saved too much."""
    while True:
        options = []
        for name, ladder in ladders.items():
            if rung[name]:
                trial = widths.copy()
                trial[index[name]] = ladder[rung[name] - 1][0]
                if cost.total(quantity, trial) <= target * (1 + 1e-9):
                    options.append((ladder[rung[name]][1], name))
        if not options:
            return
        _, name = max(options)
        rung[name] -= 1
        widths[index[name]] = ladders[name][rung[name]][0]


def _ladder(width: int, n_blocks: int, loss: np.ndarray, limits: Limits) -> list[tuple[int, float]]:
    """Return (kept width, marginal loss per channel to get there), on the lower convex hull of the curve."""
    kept = [k for k in limits.choices(width, n_blocks) if width - k < len(loss)]
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
            widths[position] = limits.choices(group.width, group.n_blocks)[-1]
    return cost.total(quantity, widths) / cost.total(quantity)


def example_batch(graph: ChannelGraph) -> int:
    """Return the batch size of the example (1 where it has no tensor)."""
    return next((int(a.shape[0]) for a in graph.args if isinstance(a, torch.Tensor) and a.ndim), 1)
