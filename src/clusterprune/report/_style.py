"""How figures look: colours that colour-blind people tell apart, for light pages and dark ones, and no ornament."""

from collections.abc import Mapping, Sequence
from typing import Any

from plotly.graph_objects import Figure

BLUE, ORANGE, GREEN, PINK, GREY = "#0067a5", "#c95a00", "#00805c", "#a8538a", "#6b7280"
"""Colours for lines and marks on white, after Okabe and Ito's palette but darker, to be read on it (4.5 to 1)."""

DARK = {BLUE: "#56b4e9", ORANGE: "#f0a04b", GREEN: "#2ec49a", PINK: "#dd8fc0", GREY: "#9aa3b2"}
"""Their places on a dark page."""

COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross", "hexagon")
INK, LINE = "#1f2933", "#d8dee6"
"""Text and grid on white; the page puts its own in their place."""


def figure(traces: Sequence[Mapping[str, Any]], *, height: int = 360, **layout: Any) -> Figure:
    """Return a figure of traces, each a mapping as Plotly has them, with what all figures have alike.

    Parameters
    ----------
    height
        In pixels.
    **layout
        What this one has besides.
    """
    axis = {"gridcolor": LINE, "zerolinecolor": LINE, "linecolor": LINE, "automargin": True, "fixedrange": True}
    shared: dict[str, Any] = {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "hovermode": "closest",
        "xaxis": axis,
        "yaxis": axis,
    }
    for name, value in layout.items():
        shared[name] = {**shared[name], **value} if isinstance(value, dict) and name in shared else value
    if "xaxis2" in shared:
        shared["xaxis2"] = axis | shared["xaxis2"]
    if "yaxis2" in shared:
        shared["yaxis2"] = axis | shared["yaxis2"]
    return Figure({"data": [dict(trace) for trace in traces], "layout": shared})


def counted(last: int) -> dict[str, Any]:
    """Return the ticks of an axis that counts from 1: whole numbers, ten of them or fewer."""
    return {"tickmode": "linear", "tick0": 1, "dtick": max(1, -(-last // 10))}


def marker(number: int) -> dict[str, Any]:
    """Return the marks of the series of this number, of which no two differ in colour alone."""
    return {"color": COLOURS[number % len(COLOURS)], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 11}
