"""One page of displays, complete in itself: no request leaves it, and it can be mailed, or put beside the run."""

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from clusterprune.files.tables import columns_of
from clusterprune.files.writing import write_file
from clusterprune.report._base import Display
from clusterprune.report._registry import displays
from clusterprune.report._style import DARK
from clusterprune.report.run import Run

REPORT_NAME = "report.html"
_TEMPLATES = "templates"
_WORDY = 40
"""Characters of a cell from which on a table becomes a list on a narrow screen."""


def render(runs: Sequence[Run]) -> str:
    """Return a page on one run, or one that compares several."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    return render_displays(displays(runs), title, _about(runs))


def render_displays(shown: Sequence[Display], title: str, about: str = "") -> str:
    """Return a page of displays.

    Parameters
    ----------
    title, about
        Its heading, and what stands below.
    """
    parts = [_part(display) for display in shown]
    scripts = [_plotly(), _source("page.js")] if any(part["figure"] for part in parts) else []
    return _environment().get_template("page.html").render(
        title=title,
        about=about,
        parts=parts,
        style=_source("page.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        dark=_escaped(json.dumps(DARK)),
        version=metadata.version("clusterprune"),
    )  # fmt: skip


def write_page(runs: Sequence[Run], path: Path) -> Path:
    """Write a page of runs in the place of what was there; return where it is.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    # Of a folder's name that is no Unicode, the escape is shown.
    write_file(path, render(runs).encode("utf-8", "backslashreplace"))
    return path


def _part(display: Display) -> dict[str, Any]:
    """Return what the template shows of a display."""
    rows, drawn = display.frame(), display.plot()
    columns = columns_of(rows)
    return {
        "name": display.name,
        "title": display.title,
        "statement": display.statement,
        "folded": display.folded,
        "columns": columns,
        "rows": [[cell(row.get(column)) for column in columns] for row in rows],
        "numeric": [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns],
        "figure": None if drawn is None else _escaped(str(drawn.to_json())),
        "height": None if drawn is None else drawn.layout.height,
        "wordy": any(isinstance(value, str) and len(value) > _WORDY for row in rows for value in row.values()),
        "states": [row.get("state") for row in rows],
    }


def cell(value: Any) -> str:
    """Return what a table shows of a value: numbers with separators, and no more digits than tell something."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _about(runs: Sequence[Run]) -> str:
    """Say in a line what was done to what."""
    if len(runs) > 1:
        return ", ".join(run.name for run in runs)
    config = runs[0].config
    model, data, method = (config.get(name) for name in ("model", "data", "method"))
    parts = [runs[0].command, str(model or config.get("recipe") or ""), f"by {method}" if method else ""]
    return " ".join(filter(None, [*parts, f"on {data}" if data else ""]))


@functools.cache
def _environment() -> Environment:
    # Whatever a run's files hold is text on the page, never markup.
    loader = PackageLoader("clusterprune.report", _TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@functools.cache
def _source(name: str) -> str:
    return (resources.files("clusterprune.report") / _TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    return get_plotlyjs()


def _hash(script: str) -> str:
    """Return what lets a browser run this script on the page, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    """Return JSON that cannot end the element it stands in."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
