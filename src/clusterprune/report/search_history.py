"""How a search for a structure went, and the best that it had met by then."""

from collections.abc import Sequence
from typing import ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows, single
from clusterprune.report._style import GREEN, GREY, counted, figure
from clusterprune.report.run import Run


class SearchHistory(Display):
    """Fitness of every structure in the order of the search, with the best so far."""

    name: ClassVar[str] = "search"
    title: ClassVar[str] = "Search"

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read what the run's plan notes of the search."""
        run = single(runs)
        values = [] if run is None else run.notes.get("history", [])
        rows: Rows = []
        best: float | None = None
        for number, value in enumerate(values, 1):
            if value is not None and (best is None or value > best):
                best = value
            rows.append({"structure": number, "fitness": value, "best so far": best})
        if best is None:
            return None
        at = next(row["structure"] for row in rows if row["fitness"] == best)
        failed = sum(value is None for value in values)
        told = f" {failed} could not be evaluated." if failed else ""
        return cls(rows, f"{len(rows)} structures were looked at; the best, {best:.2f}, was number {at}.{told}")

    def plot(self) -> Figure:
        """Draw a point for each structure, and the best so far as steps."""
        steps = [row["structure"] for row in self.rows]
        return figure(
            [
                {
                    "type": "scatter", "mode": "markers", "name": "structure", "x": steps,
                    "y": [row["fitness"] for row in self.rows],
                    "marker": {"color": GREY, "size": 8, "symbol": "circle-open", "line": {"width": 2}},
                },
                {
                    "type": "scatter", "mode": "lines", "name": "best so far", "x": steps,
                    "y": [row["best so far"] for row in self.rows],
                    "line": {"color": GREEN, "shape": "hv", "width": 2.5},
                },
            ],
            xaxis={"title": "structure, in order"} | counted(len(steps)), yaxis={"title": "fitness"},
        )  # fmt: skip
