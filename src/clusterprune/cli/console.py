"""What the terminal shows: results, numbers and tables. Nothing heavy is imported here."""

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusterprune.files.credentials import hidden

_PIPE_WIDTH = 100


def several() -> bool:
    """Tell whether a launcher has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Return this process's number among those that a launcher has started; process 0 is the one to speak."""
    return int(os.environ.get("RANK", "0")) if several() else 0


def console(*, stderr: bool = False, all_speak: bool = False) -> Console:
    """Return a console on the stream as it is now; one that is no terminal is 100 columns wide.

    Of several processes the main one alone has a console that shows anything, unless `all_speak`.
    """
    quiet = rank() > 0 and not all_speak
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    # Of a file's name that is no Unicode, or that this terminal cannot show, the escape is shown.
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    # Brackets and colons in names are what they are: neither styles nor pictures.
    width = _PIPE_WIDTH if piped else None
    return Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False, width=width)


_settings = {"json": False, "quiet": False}


def speak(*, as_json: bool, quiet: bool) -> None:
    """Say for this command whether results are JSON, and whether anything but results, warnings and errors is shown."""
    _settings.update(json=as_json, quiet=quiet)


def quiet() -> bool:
    """Tell whether progress and closing words are left out."""
    return _settings["quiet"]


def show(result: Mapping[str, Any], *told: Table | str | Text) -> None:
    """Print a result: as JSON, if that is asked for, else as tables and closing words for people."""
    where = console()
    if _settings["json"]:
        if not where.quiet:
            typer.echo(json.dumps(hidden(result), indent=2))
        return
    for one in told:
        if not isinstance(one, str) or not quiet() or len(told) == 1:
            where.print(one, soft_wrap=not isinstance(one, Table))


def percent(value: float | None) -> str:
    """Return a percentage, or a dash where there is none."""
    return "-" if value is None else f"{value:.2f} %"


def three_digits(value: float) -> str:
    """Return a number with three significant digits, all of them shown: 8.00, 22.3, 1630."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def milliseconds(value: float) -> str:
    """Return a time in milliseconds with three significant digits."""
    return f"{three_digits(value)} ms"


def size(value: int) -> str:
    """Return a number of bytes in megabytes, or in kilobytes where it is small."""
    return f"{three_digits(value / 1e6)} MB" if value >= 1e5 else f"{three_digits(value / 1e3)} kB"


def duration(seconds: float) -> str:
    """Return a time as people say it: 8.4 s, 2 min 05 s, 1 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    """Return an empty table whose first columns are aligned left and whose others are aligned right."""
    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index < left else "right", overflow="fold")
    return made
