"""How studies are drawn: matplotlib's figures in one style, as SVG and PNG."""

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clusterprune.errors import ArgumentError
from clusterprune.files.writing import write_file

# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")


class Drawing:
    """A figure that is being drawn.

    Raises
    ------
    ArgumentError
        matplotlib is not installed.
    """

    def __init__(self, title: str) -> None:
        try:
            figures = importlib.import_module("matplotlib.figure")
            self._matplotlib = importlib.import_module("matplotlib")
        except ImportError as error:
            raise ArgumentError(
                f"figures are drawn by matplotlib, which is not here ({error}); pip install 'clusterprune[studies]'"
            ) from error
        self.figure: Any = figures.Figure(layout="constrained", dpi=150)
        self.title = title

    def axes(self, rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (4.6, 3.2)) -> list[Any]:
        """Return axes of a grid, row by row, each of a width and height in inches."""
        self.figure.set_size_inches(1 + size[0] * columns, 0.6 + size[1] * rows)
        with self._style():
            return list(self.figure.subplots(rows, columns, squeeze=False).flat)

    def line(
        self, axes: Any, x: Sequence[Any], y: Sequence[Any], label: str, number: int, *, marker: bool = True
    ) -> None:
        """Draw one of several lines, each with a colour, dashes and a marker of its own."""
        axes.plot(
            x, y, LINES[number // len(COLOURS) % len(LINES)], color=COLOURS[number % len(COLOURS)], label=label,
            marker=MARKERS[number % len(MARKERS)] if marker else None, markersize=4, linewidth=1.4,
        )  # fmt: skip

    def shade(self, axes: Any, x: Sequence[Any], y: Sequence[Any], label: str, share: float) -> None:
        """Draw one of several lines that have an order: dark for a `share` of 0, light for 1."""
        axes.plot(x, y, color=self._matplotlib.colormaps["viridis"](0.9 * share), label=label, linewidth=1.4)

    def bars(self, axes: Any, names: Sequence[str], heights: dict[str, Sequence[float]]) -> None:
        """Draw groups of bars: one group a name, one bar in each for every entry of `heights`."""
        width = 0.8 / max(1, len(heights))
        for number, (label, values) in enumerate(heights.items()):
            places = [place + (number - (len(heights) - 1) / 2) * width for place in range(len(names))]
            axes.bar(places, values, width, label=label, color=COLOURS[number % len(COLOURS)])
        axes.set_xticks(
            range(len(names)), names, rotation=90 if len(names) > 8 else 0, fontsize=6 if len(names) > 20 else 8
        )

    def shares(self, axes: Any, values: Sequence[float]) -> None:
        """Let an axis of percentages begin at 0, or where all are within ten points of each other, shortly below."""
        least, most = min(values), max(values)
        axes.set_ylim(max(0, least - 5) if most - least < 10 else 0, 100)

    def finish(self, axes: Any, x: str, y: str, *, legend: bool = True) -> None:
        """Name the axes."""
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(visible=True, alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if legend and axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, frameon=False)

    def save(self, folder: Path) -> None:
        """Write figure.svg and figure.png."""
        self.figure.suptitle(self.title, fontsize=9)
        for kind, more in (("svg", {"metadata": {"Date": None}}), ("png", {"metadata": {"Software": None}})):
            content = io.BytesIO()
            with self._style():
                self.figure.savefig(content, format=kind, facecolor="white", **more)
            write_file(folder / f"figure.{kind}", content.getvalue())

    def _style(self) -> Any:
        # The same bytes for the same rows: the ids in an SVG are random otherwise.
        return self._matplotlib.rc_context({"svg.hashsalt": "clusterprune", "font.size": 8, "svg.fonttype": "path"})
