"""What the terminal shows: numbers, and the closing tables."""

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
from clusterprune.tables import count

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


def milliseconds(value: float) -> str:
    """Return a time in milliseconds with three significant digits."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def size(value: int) -> str:
    """Return a number of bytes in megabytes, or in kilobytes where it is small."""
    return f"{value / 1e6:.3g} MB" if value >= 1e5 else f"{value / 1e3:.3g} kB"


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


ACCURACIES = (
    ("top-1 accuracy", "accuracy"),
    ("top-5 accuracy", "accuracy_top5"),
    ("mAP50 (VOC)", "map50"),
    ("mAP50 (VOC2007, 11 points)", "map50_11point"),
    ("mAP (COCO)", "map"),
    ("agreement", "agreement"),
)
"""What tables call the percentages that tasks measure, in this order."""


def comparison(title: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Return the closing table of a compression: what it cost, and what it brought."""
    made = table(title, ("", "baseline", "compressed", "change"))
    for name, key in (("MACs", "macs"), ("parameters", "params")):
        made.add_row(name, count(before[key]), count(after[key]), _fewer(before[key], after[key]))
    for name, key in ACCURACIES:
        if before.get(key) is not None and after.get(key) is not None:
            made.add_row(name, percent(before[key]), percent(after[key]), points(after[key] - before[key]))
    made.add_row(
        latency_name(before),
        milliseconds(before["latency_ms"]),
        milliseconds(after["latency_ms"]),
        f"{before['latency_ms'] / after['latency_ms']:.2f} x as fast",
    )
    return made


def single(title: str, values: Mapping[str, Any]) -> Table:
    """Return the table of one model."""
    made = table(title, ("", "measured"))
    for name, key in ACCURACIES:
        if values.get(key) is not None:
            made.add_row(name, percent(values[key]))
    if values["images"]:
        made.add_row("test images", f"{values['images']:,}")
    made.add_row("MACs", count(values["macs"]))
    made.add_row("parameters", count(values["params"]))
    made.add_row(latency_name(values), milliseconds(values["latency_ms"]))
    return made


def latency_name(values: Mapping[str, Any]) -> str:
    """Say what a latency is of: latency, 8 images, onnxruntime:threads=1."""
    batch = values["latency_batch"]
    return ", ".join([f"latency, {batch} image{'s' if batch > 1 else ''}", *filter(None, [values.get("runtime")])])


def points(change: float) -> str:
    """Return a change of accuracy in percentage points."""
    return f"{change:+.2f} points"


def _fewer(before: int, after: int) -> str:
    kept = 100 * after / before if before else 100.0
    return f"{kept:.1f} % kept"
