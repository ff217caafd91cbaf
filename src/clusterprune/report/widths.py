"""How wide every layer was, and is (the picture of ACP Fig. 7)."""

from collections.abc import Sequence
from typing import ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows, single
from clusterprune.report._style import BLUE, GREY, figure
from clusterprune.report.run import Run


class Widths(Display):
    """Channels of every layer, original and compact."""

    name: ClassVar[str] = "widths"
    title: ClassVar[str] = "Width of every layer"

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``details.json``."""
        run = single(runs)
        found = {} if run is None else run.details.get("widths", {})
        rows: Rows = [
            {"layer": layer, "original": pair[0], "compact": pair[1], "kept": f"{pair[1] / pair[0]:.0%}"}
            for layer, pair in found.items()
            if len(pair) == 2 and all(pair)
        ]
        if not rows:
            return None
        cut = [row for row in rows if row["compact"] < row["original"]]
        if not cut:
            return cls(rows, f"None of the {len(rows)} layers was made narrower.")
        least = min(cut, key=lambda row: row["compact"] / row["original"])
        return cls(
            rows,
            f"{len(cut)} of {len(rows)} layers are narrower. The most was cut of {least['layer']}, "
            f"which keeps {least['compact']} of {least['original']} channels.",
        )

    def plot(self) -> Figure:
        """Draw a bar for what a layer had, and one in it for what is left."""
        layers = [row["layer"] for row in self.rows]

        def bar(name: str, colour: str, opacity: float, width: float) -> dict[str, object]:
            told = f"%{{x}}<br>%{{y}} {name}<extra></extra>"
            return {
                "type": "bar", "name": name, "x": layers, "y": [row[name] for row in self.rows], "width": width,
                "marker": {"color": colour, "opacity": opacity}, "hovertemplate": told,
            }  # fmt: skip

        # Names of many layers cannot be read; the pointer and the table tell them.
        ticks = {"showticklabels": len(layers) <= 40, "title": "" if len(layers) <= 40 else "layers, first to last"}
        return figure(
            [bar("original", GREY, 0.35, 0.9), bar("compact", BLUE, 1.0, 0.6)],
            height=400, barmode="overlay", xaxis={"type": "category", "tickangle": -60, "showgrid": False} | ticks,
            yaxis={"title": "channels"},
        )  # fmt: skip
