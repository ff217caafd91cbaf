"""What a plan would make of a network, counted before anything is cut."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from clusterprune.budget.allocation import CostModel, Quantity
from clusterprune.graph import ChannelGraph
from clusterprune.graph.channels import FrozenLayers, frozen_layers
from clusterprune.graph.program import named_tensors
from clusterprune.plan import Plan
from clusterprune.surgery.bias_homes import bias_home
from clusterprune.surgery.cutting import removed_labels
from clusterprune.tables import count, facts_of, few, html_lines, html_part, html_table, name_of, text_table


class BeforeAfter(NamedTuple):
    """A number before and after the cut."""

    before: int
    after: int

    @property
    def kept(self) -> float:
        """Share that is left, from 0 to 1; 1 where there was nothing."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True, repr=False)
class PlanSummary:
    """What a plan would make of a network, as :meth:`clusterprune.Plan.summary` returns it; print it.

    Attributes
    ----------
    network
        Class of the network.
    widths
        Width of every group that may be cut or is, by name, in the order of the graph. Like
        :attr:`clusterprune.graph.Group.width`, it counts what stays or goes as one: channels, or sets of channels.
    macs
        Multiply-adds of one forward pass of the traced example, as :func:`clusterprune.evaluate.macs` counts them.
    params
        Parameters, as :func:`clusterprune.evaluate.params` counts them: biases that take up an offset are counted, and
        so is what no forward pass touches, which only a model that has to be rebuilt from its graph loses.
    frozen
        Layers whose channels must stay, and why.
    notes
        What the plan notes of how it was made.
    """

    network: str
    widths: Mapping[str, BeforeAfter]
    macs: BeforeAfter
    params: BeforeAfter
    frozen: tuple[FrozenLayers, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str | None:
        """The method that made the plan, if it says so."""
        found = self.notes.get("method")
        return None if found is None else str(found)

    @property
    def budget(self) -> dict[str, Any]:
        """What was asked for: `keep_macs` and the like, by name."""
        return {name: value for name, value in self.notes.items() if name.startswith("keep_")}

    @property
    def predicted_loss(self) -> float | None:
        """What the method expects the cut to cost the network's loss, if the plan notes it as `predicted_loss`."""
        found = self.notes.get("predicted_loss")
        return float(found) if isinstance(found, int | float) else None

    def __str__(self) -> str:
        """Describe it as plain text: what it costs, the width of every group, and what is frozen and why."""
        lines = [*self._told(), "", *text_table(_COSTS, self._costs())]
        if self.widths:
            lines += ["", *text_table(_WIDTHS, self._rows())]
        if self.frozen:
            lines += ["", "frozen:"]
            lines += [f"  {line}" for line in text_table([""] * 3, self._stays(), left=3)[1:]]
        return "\n".join(lines)

    # A summary is made to be read: at a prompt, nobody wants to print it in a second step.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Describe it as tables for a notebook."""
        tables = [html_table(_COSTS, self._costs()), html_table(_WIDTHS, self._rows())]
        if self.frozen:
            tables.append(html_table(_FROZEN, self._stays(), left=3))
        headline, *more = self._told()
        title, _, facts = headline.partition(": ")
        return html_part(title, html_lines([line for line in (facts, *more) if line]), *tables)

    def _told(self) -> list[str]:
        """Say what the plan is, and which widths it keeps where it has chosen such as run fast."""
        widths = self.notes.get("widths")
        return [self._headline(), *([f"Widths: {name_of(widths, 200)}"] if isinstance(widths, str) else [])]

    def _headline(self) -> str:
        facts = facts_of(self.notes)
        by = f" by {facts.pop('method')}" if "method" in facts else ""
        for name in ("predicted_loss", "widths"):
            facts.pop(name, None)  # these have lines of their own
        told = ", ".join(f"{name}={value}" for name, value in facts.items())
        return f"Plan for {self.network}{by}" + (f": {told}" if told else "")

    def _costs(self) -> list[tuple[str, ...]]:
        rows = [
            (name, count(cut.before), count(cut.after), f"{cut.kept:.1%}")
            for name, cut in (("MACs", self.macs), ("parameters", self.params))
        ]
        if self.predicted_loss is not None:
            rows.append(("predicted loss", "", f"{self.predicted_loss:.4g}", ""))
        return rows

    def _rows(self) -> list[tuple[str, ...]]:
        return [(name, str(cut.before), str(cut.after), f"{cut.kept:.0%}") for name, cut in self.widths.items()]

    def _stays(self) -> list[tuple[str, ...]]:
        return [(few(list(layer.layers)), layer.width.strip(), layer.reason) for layer in self.frozen]


_COSTS = ("", "before", "after", "kept")
_WIDTHS = ("group", "before", "after", "kept")
_FROZEN = ("frozen", "channels", "why")


def summarize(graph: ChannelGraph, plan: Plan) -> PlanSummary:
    """Count what a plan leaves of a traced network; see :meth:`clusterprune.Plan.summary`."""
    plan.check(graph)
    cost, kept = CostModel(graph), plan.widths

    def counted(quantity: Quantity) -> BeforeAfter:
        return BeforeAfter(round(cost.total(quantity)), round(left_by(cost, quantity, plan)))

    widths = {
        group.name: BeforeAfter(group.width, kept.get(group.name, group.width))
        for group in graph.groups
        if group.frozen is None or group.name in kept
    }
    frozen = tuple(frozen_layers(graph)[1])
    return PlanSummary(type(graph.model).__name__, widths, counted("macs"), counted("params"), frozen, plan.notes)


def left_by(cost: CostModel, quantity: Quantity, plan: Plan) -> float:
    """Return the MACs or parameters of the network that a plan leaves, its new biases included."""
    graph = cost.graph
    removed = removed_labels(graph, plan)
    left = cost.without(quantity, removed)
    if quantity == "params":
        known = named_tensors(graph)
        homes = {weight: bias_home(graph, weight) for merge in plan.merges for weight in merge.offset}
        new = {home[1]: weight for weight, home in homes.items() if home is not None and home[0] == "new"}
        for path, weight in new.items():
            if path not in known and path not in plan.replaced:
                rows = graph.walk.space.roots(graph.walk.slices[weight, 0].labels)
                left += int((~np.isin(rows, removed)).sum())
        left += sum(tensor.numel() for path, tensor in plan.replaced.items() if path not in known)
    return left
