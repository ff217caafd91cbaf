"""What channels are worth: the loss of going without them against the multiply-adds that it saves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows, single
from clusterprune.report._style import BLUE, GREY, ORANGE, figure
from clusterprune.report.run import Run


@dataclass(frozen=True)
class LossCurves(Display):
    """Loss over saved multiply-adds, a curve for each group: what a one-shot budget was shared by.

    Attributes
    ----------
    ends
        The group that costs the least for what it saves, and the one that costs the most.
    """

    name: ClassVar[str] = "loss-curves"
    title: ClassVar[str] = "What the budget was shared by: loss for every MAC saved"

    ends: tuple[str, str]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read the notes of the run's first plan."""
        run = single(runs)
        curves = {} if run is None else run.notes.get("curves", {})
        if run is None or not curves:
            return None
        rows: Rows = [
            {"group": group, "removed": gone, "MACs saved": gone * curve["macs"], "loss": loss}
            for group, curve in curves.items()
            for gone, loss in zip(curve["removed"], curve["loss"], strict=True)
        ]
        # What half of a group costs, per multiply-add, tells cheap groups from dear ones.
        price = {
            group: curve["loss"][len(curve["loss"]) // 2] / max(1, curve["macs"] * max(curve["removed"]))
            for group, curve in curves.items()
        }
        cheap, dear = min(price, key=price.__getitem__), max(price, key=price.__getitem__)
        shared = run.notes.get("shared_by")
        by = "" if shared in (None, "priced") else f" The budget was shared by another hypothesis in the end: {shared}."
        return cls(
            rows,
            f"One curve for each of {len(curves)} groups of channels. For a MAC, {cheap} costs the least loss and "
            f"{dear} the most.{by}",
            (cheap, dear),
        )

    def plot(self) -> Figure:
        """Draw a line for each group, the cheapest and the dearest in colour."""
        colours = dict(zip(self.ends, (BLUE, ORANGE), strict=True))
        groups = [name for name in dict.fromkeys(row["group"] for row in self.rows) if name not in colours]
        traces = []
        for group in (*groups, *colours):  # what comes last lies above
            # A logarithm has no place for what costs nothing.
            part = [row for row in self.rows if row["group"] == group and row["loss"] > 0]
            dear = group == self.ends[1]
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "name": group, "showlegend": group in colours,
                    "x": [row["MACs saved"] for row in part], "y": [row["loss"] for row in part],
                    "customdata": [row["removed"] for row in part], "opacity": 1.0 if group in colours else 0.45,
                    "line": {
                        "color": colours.get(group, GREY), "width": 3 if group in colours else 1.5,
                        "dash": "dash" if dear else "solid",
                    },
                    "hovertemplate": "%{customdata} channels less<br>%{x:.3s} MACs, loss %{y:.3g}",
                }
            )  # fmt: skip
        # A number at each power of ten, as it is written elsewhere on the page.
        decades = {"type": "log", "dtick": 1, "exponentformat": "none"}
        return figure(traces, height=420, xaxis={"title": "MACs saved"}, yaxis={"title": "loss, nats"} | decades)
