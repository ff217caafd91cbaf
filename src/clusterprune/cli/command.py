"""How every command ends: with a result, one red paragraph, or a calm word after Ctrl-C."""

import functools
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.text import Text

from clusterprune.cli.console import console

INTERRUPTED = 130
FAILED = 2


class Stopped(Exception):  # noqa: N818 (it is no error)
    """Ctrl-C, with what is on disk and how to go on."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that our own errors and Ctrl-C end it without a traceback.

    Exit codes: 0 done, 2 an error that the user can act on, 130 stopped by Ctrl-C. Other exceptions are
    faults of ours and propagate.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        from clusterprune.errors import ClusterpruneError

        debug = bool(kwargs.get("debug"))
        try:
            with _warnings_as_lines(debug):
                function(*args, **kwargs)
        except Stopped as stopped:
            _say(f"Stopped. {stopped}", "yellow")
            raise typer.Exit(INTERRUPTED) from None
        except KeyboardInterrupt:
            _say("Stopped. Nothing was written; give the same command to begin again.", "yellow")
            raise typer.Exit(INTERRUPTED) from None
        except ClusterpruneError as error:
            if debug:
                traceback.print_exc(file=sys.stderr)
            _say(f"Error: {_sentence(str(error))}", "red")
            raise typer.Exit(FAILED) from None

    return run


def _say(text: str, style: str) -> None:
    # Soft wrapping leaves paths and commands whole, to be copied.
    console(stderr=True).print(Text(text, style=style), soft_wrap=True)


def _sentence(text: str) -> str:
    """Return one paragraph with a full stop."""
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextmanager
def _warnings_as_lines(debug: bool) -> Iterator[None]:
    """Show our own warnings as one yellow line each, and those of other libraries only to debuggers."""

    def show(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
        if debug or category.__module__.startswith("clusterprune"):
            _say(f"Warning: {_sentence(str(message))}", "yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        if not sys.warnoptions:
            warnings.simplefilter("default")
        yield
