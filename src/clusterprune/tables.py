"""What people read of objects: counts with units, names on one line, and small tables as text and as HTML."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_NAME_LENGTH = 60
"""Longest name that is shown whole: a plan may come from a file, and its names may be anything."""


def count(value: float) -> str:
    """Return a count with a unit: 125.49 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: 1 group, 2 groups."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def name_of(value: object, length: int = _NAME_LENGTH) -> str:
    """Return a name as it is, or escaped and cut if a line could not show it."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= length else f"{text[:length]}…"


def few(names: Sequence[str], limit: int = 4) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def first_widths(widths: Mapping[str, int]) -> str:
    """Return how wide the first groups are, and how many more there are: 9 of conv1, 13 of conv2 and 2 more."""
    return few([f"{width} of {name_of(name)}" for name, width in widths.items()], limit=3)


def facts_of(notes: Mapping[str, Any]) -> dict[str, str]:
    """Return what can be said on one line of the notes of a plan, or of a record: numbers, and short text."""
    shown = {}
    for name, value in notes.items():
        if isinstance(value, float):
            shown[name_of(name)] = f"{value:.6g}"
        elif (isinstance(value, str) and len(value) <= _NAME_LENGTH) or _is_short(value):
            shown[name_of(name)] = name_of(value)
    return shown


def _is_short(value: object) -> bool:
    """Tell whether a value is yes, no, or a whole number that Python is willing to write."""
    return isinstance(value, bool) or (isinstance(value, int) and value.bit_length() < 128)


def network_of(model: "nn.Module") -> str:
    """Return the class of a network, and how many parameters it has."""
    return f"{type(model).__name__} with {count(sum(p.numel() for p in model.parameters()))} parameters"


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return the lines of a table whose first columns are aligned left and whose others are aligned right."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    aligned = (
        [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    return ["  ".join(line).rstrip() for line in aligned]


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a table as HTML that brings no colours: it takes those of the page, light or dark.

    Whatever is in a cell is text. Columns are aligned as :func:`text_table` aligns them.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f'<{tag} style="text-align: {"left" if place < left else "right"}">{escape(cell)}</{tag}>'
            for place, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(columns, 'th')}</thead><tbody>{body}</tbody></table>"


def html_records(records: Sequence[Any]) -> str:
    """Return records, which are mappings, as a table with a column for every name; nothing if they are no mappings."""
    rows = [facts_of(record) for record in records if isinstance(record, Mapping)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return html_table(columns, [[row.get(name, "") for name in columns] for row in rows], left=0) if columns else ""


def html_part(title: str, *parts: str) -> str:
    """Return a title, which is text, and what belongs under it, which is HTML; what is long can be scrolled."""
    return (
        f'<div><p><strong>{escape(title)}</strong></p><div style="max-height: 30em; overflow: auto">'
        f"{''.join(parts)}</div></div>"
    )


def html_lines(lines: Iterable[str]) -> str:
    """Return lines of text as HTML, which keeps their spaces."""
    return "".join(f'<div style="white-space: pre-wrap">{escape(line)}</div>' for line in lines)
