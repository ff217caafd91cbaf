"""A network as lanes: a line for each group of channels, through the layers that make it, carry it on and read it."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.groups import size_of
from clusterprune.graph.walk import layer_of
from clusterprune.report._style import BLUE, DARK, GREEN, GREY, INK, ORANGE, PINK

_ROW, _LANE, _LETTER = 24, 18, 7.8
"""Pixels from row to row, from lane to lane, and of a letter of the monospaced font at 13 pixels."""
_COLOURS = {BLUE: "a", ORANGE: "b", GREEN: "c", PINK: "d", GREY: "frozen"}
_PAPER, _DARK_PAPER, _DARK_INK = "#ffffff", "#14181d", "#e6eaef"
_LEGEND = (("makes", "makes these channels"), ("reads", "reads them"), ("bar", "carries them on"), ("frozen", "frozen"))


@dataclass(frozen=True)
class Lane:
    """Where a group runs: its column, and the rows of the layers that make, carry and read it."""

    group: Group
    column: int
    makers: tuple[int, ...]
    carriers: tuple[int, ...]
    readers: tuple[int, ...]

    @property
    def first(self) -> int:
        """The first row that has to do with the group."""
        return min(self.makers + self.carriers + self.readers)

    @property
    def last(self) -> int:
        """The last one."""
        return max(self.makers + self.carriers + self.readers)


def layers_of(graph: ChannelGraph) -> list[str]:
    """Return what has a row: the convolutions and linear layers in order of execution, each once.

    Layers that only training applies come last.
    """
    made = (layer_of(use.path) for group in graph.groups for use in group.producers)
    return list(dict.fromkeys([*(call.layer for call in graph.calls), *made]))


def lanes(graph: ChannelGraph) -> list[Lane]:
    """Give every group a column that no other group needs in the same rows, from the left."""
    rows = {layer: row for row, layer in enumerate(layers_of(graph))}

    def places(paths: Iterable[str]) -> tuple[int, ...]:
        return tuple(sorted({rows[layer_of(path)] for path in paths if layer_of(path) in rows}))

    found: list[Lane] = []
    taken: list[int] = []  # by column: the last row in use
    drafts = [
        Lane(group, 0, *(places(u.path for u in uses) for uses in (group.producers, group.carriers, group.consumers)))
        for group in graph.groups
    ]
    for lane in sorted(drafts, key=lambda draft: (draft.first, -draft.last)):
        column = next((c for c, last in enumerate(taken) if last < lane.first), len(taken))
        taken[column : column + 1] = [lane.last]
        found.append(Lane(lane.group, column, lane.makers, lane.carriers, lane.readers))
    return found


def draw_graph(graph: ChannelGraph) -> str:
    """Draw the groups of a network, as the text of an SVG file that looks right on light pages and dark ones.

    Every convolution and linear layer has a row, in order of execution; every group of channels a line, on which a
    filled circle is a layer that makes the channels, a ring one that reads them, and a bar a depthwise layer that
    carries them on. A group whose line passes many layers by is a residual stream, or feeds a concatenation far below.
    Pointing at a line names the group and says why it is frozen, if it is.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> draw_graph(cp.trace(net, torch.zeros(1, 3, 8, 8))).startswith("<svg")
    True
    """
    layers, found = layers_of(graph), lanes(graph)
    columns = 1 + max((lane.column for lane in found), default=0)
    text = 16 + columns * _LANE
    notes = [_note(row, found) for row in range(len(layers))]
    name = max((len(layer) for layer in layers), default=0) + 3
    letters = max([_legend_letters(), *(name + len(note) for note in notes)])
    width, height = round(text + _LETTER * letters + 16), (len(layers) + 2) * _ROW
    parts = [f'<rect class="paper" width="{width}" height="{height}"/>']
    parts += [_ties(row, found) for row in range(len(layers))]
    parts += [_line(lane) for lane in found]
    for row, (layer, note) in enumerate(zip(layers, notes, strict=True)):
        after = f'<tspan class="note" x="{round(text + _LETTER * name)}">{escape(note)}</tspan>'
        parts.append(f'<text x="{text}" y="{_y(row) + 4}">{escape(layer)}{after}</text>')
    parts.append(_legend(text, _y(len(layers)) + 6))
    about = f"{len(layers)} layers of {type(graph.model).__name__}, and {len(graph.groups)} groups of channels"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title>{escape(about)}</title><style>{_style()}</style>'
        + "\n".join(filter(None, parts))
        + "</svg>\n"
    )


def _note(row: int, found: list[Lane]) -> str:
    """Say what a layer makes: how many channels of each group, and with whom, where it is one that others make too."""
    made = [lane for lane in found if row in lane.makers]
    if not made:
        return "carries channels on" if any(row in lane.carriers for lane in found) else ""
    if len(made) == 1:
        elsewhere = "" if row == made[0].makers[0] else f", added to those of {made[0].group.name}"
        return size_of(made[0].group) + elsewhere
    return " + ".join(str(lane.group.channels) for lane in made) + " channels"


def _ties(row: int, found: list[Lane]) -> str:
    """Join the groups that a layer reads and makes."""
    columns = [lane.column for lane in found if row in lane.makers + lane.readers]
    if len(set(columns)) < 2:
        return ""
    return f'<path class="tie" d="M{_x(min(columns))} {_y(row)}H{_x(max(columns))}"/>'


def _line(lane: Lane) -> str:
    group, x = lane.group, _x(lane.column)
    palette = [name for name in _COLOURS.values() if name != "frozen"]
    kind = "frozen" if group.frozen is not None else palette[lane.column % len(palette)]
    marks = [f'<path d="M{x} {_y(lane.first)}V{_y(lane.last)}"/>'] if lane.last > lane.first else []
    marks += [f'<path d="M{x - 5} {_y(row)}H{x + 5}"/>' for row in lane.carriers]
    marks += [f'<circle class="reads" cx="{x}" cy="{_y(row)}" r="5"/>' for row in lane.readers]
    marks += [f'<circle class="makes" cx="{x}" cy="{_y(row)}" r="5"/>' for row in lane.makers]
    return f'<g class="{kind}"><title>{escape(repr(group))}</title>{"".join(marks)}</g>'


def _legend_letters() -> int:
    return sum(len(words) + 5 for _, words in _LEGEND)


def _legend(x: float, y: float) -> str:
    """Say what the marks mean, each beside one."""
    parts: list[str] = []
    for kind, words in _LEGEND:
        mark = f'<circle class="{kind}" cx="{round(x) + 6}" cy="{y}" r="5"/>'
        if kind in ("bar", "frozen"):
            mark = f'<path d="M{round(x) + 1} {y}h10"/>'
        parts.append(f'<g class="{"frozen" if kind == "frozen" else "a"}">{mark}</g>')
        parts.append(f'<text class="note" x="{round(x + 2 * _LETTER)}" y="{y + 4}">{escape(words)}</text>')
        x += _LETTER * (len(words) + 5)
    return "".join(parts)


def _x(column: int) -> int:
    return 14 + column * _LANE


def _y(row: int) -> int:
    return 18 + row * _ROW


def _style() -> str:
    """Return the style sheet, with the colours of a dark page where the viewer has one."""

    def colours(shades: dict[str, str], ink: str, paper: str) -> str:
        rules = [f".paper{{fill:{paper}}}text{{fill:{ink}}}.reads{{fill:{paper}}}"]
        for colour, name in _COLOURS.items():
            shade = shades.get(colour, colour)
            rules.append(f".{name} path,.{name} circle{{stroke:{shade}}}.{name} .makes{{fill:{shade}}}")
        rules.append(f".tie{{stroke:{shades.get(GREY, GREY)}}}.note{{fill:{shades.get(GREY, GREY)}}}")
        return "".join(rules)

    return (
        "text{font:13px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
        "path{fill:none;stroke-width:2.5}circle{stroke-width:2}.tie{stroke-width:1.2}.frozen path{stroke-dasharray:3 3}"
        + colours({}, INK, _PAPER)
        + "@media(prefers-color-scheme:dark){"
        + colours(DARK, _DARK_INK, _DARK_PAPER)
        + "}"
    )
