"""Single figures as SVG or PNG, drawn by the browser that would show them, and tables as CSV."""

import base64
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes

from clusterprune.errors import ArgumentError
from clusterprune.files.tables import write_csv
from clusterprune.files.writing import write_file
from clusterprune.report._base import Display
from clusterprune.report.browser import installed, page
from clusterprune.report.page import render_displays

Kind = Literal["svg", "png"]
_WIDTH = 900
"""Of a figure, in pixels of CSS; a PNG has twice as many."""


def write_tables(shown: Sequence[Display], folder: Path) -> list[Path]:
    """Write the rows of every display as ``NAME.csv``; return where they are."""
    return [write_csv(display.frame(), folder / f"{display.name}.csv") for display in shown if display.rows]


def write_figures(
    shown: Sequence[Display], folder: Path, kind: Kind, progress: Callable[[str, int, int], None] | None = None
) -> list[Path]:
    """Write the figure of every display that has one as ``NAME.svg`` or ``NAME.png``; return where they are.

    Raises
    ------
    ArgumentError
        If there is no Chromium or Chrome to draw them.
    OutputError
        If they cannot be written.
    """
    browser = installed()
    if browser is None:
        raise ArgumentError(
            f"--{kind} needs Chromium or Chrome to draw figures, which this machine does not have (apt-get install "
            "chromium has it); or open the page elsewhere, where every figure has a button that saves it"
        )
    drawn = [display for display in shown if display.plot() is not None]
    written: list[Path] = []
    with tempfile.TemporaryDirectory() as temporary, page(browser) as window:
        file = Path(temporary) / "figures.html"
        file.write_text(render_displays(drawn, "figures"), encoding="utf-8")
        window.open(file)
        for number, display in enumerate(drawn):
            place = f"document.getElementById('{display.name}-chart')"
            scale = 2 if kind == "png" else 1
            size = f"{{format: '{kind}', width: {_WIDTH}, height: {place}.clientHeight, scale: {scale}}}"
            head, _, content = window.evaluate(f"Plotly.toImage({place}, {size})").partition(",")
            path = folder / f"{display.name}.{kind}"
            write_file(path, base64.b64decode(content) if head.endswith("base64") else unquote_to_bytes(content))
            written.append(path)
            if progress:
                progress(f"figures as {kind.upper()}", number + 1, len(drawn))
    return written
