"""How every command ends: with a result, one red paragraph, or a calm word after Ctrl-C."""

import functools
import inspect
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from rich.text import Text

from clusterprune.cli.console import console, rank, speak
from clusterprune.errors import ArgumentError, ClusterpruneError
from clusterprune.files.credentials import hide_passwords, print_traceback

INTERRUPTED = 130
FAILED = 2
PATIENCE = 5.0
"""Seconds after Ctrl-C in which more of them are taken for the same, while what is half done is put away."""

OUTPUT = {
    "as_json": typer.Option("--json", help="Print the result as JSON, for other programs.", rich_help_panel="Run"),
    "quiet": typer.Option("--quiet", help="No progress: results, warnings and errors alone.", rich_help_panel="Run"),
}
LARGEST = {"": 2**31 - 1, "seed": 2**63 - 1, "image_size": 1 << 14, "latency_batch": 1 << 16, "num_classes": 1 << 24}
"""What options may be at most, by name; "" is any other. One image of 16,384 pixels a side takes 3 GiB."""
NOTHING_WRITTEN = "Nothing was written; give the same command to begin again."
COMMANDS = {
    "demo": "Train a small network on embedded data, and compress it three ways. Takes about a minute.",
    "inspect": "Show a model's groups of channels: who makes them, who reads them, what is frozen and why.",
    "train": "Train a model. A stopped run goes on where it was.",
    "compress": (
        "Make a trained model smaller: in one shot with a few unlabelled images or none, or with training. "
        "A stopped run goes on where it was."
    ),
    "compare": "Let methods compete: one network, one budget, one training. A stopped run goes on where it was.",
    "reproduce": (
        "Run a row of the papers' tables, and show published beside measured. A stopped run goes on where it was."
    ),
    "study": "Draw a figure of the papers on a network of yours: a sweep, its table, and the figure.",
    "explore": "Show what many budgets would lead to, at little more than the cost of one, as a page with a slider.",
    "worker": "Help a run of 'compress' to search: evaluate structures beside it, on this machine or another.",
    "export": "Write a model as ONNX, .pt2, plain PyTorch or int8, checked against PyTorch and timed beside it.",
    "report": "Show what runs have found: a page of charts and checks, a comparison of runs, figures, tables.",
    "evaluate": "Measure a model or an earlier run on test images, and its multiply-adds, parameters and latency.",
}
"""The commands, in the order of the help, and what each does; the module of that name has it, under that name."""
_explanations: list[Callable[[], str]] = []
"""What Ctrl-C says; the last one counts."""


def explain_stop(explanation: Callable[[], str]) -> None:
    """From now on, and until this command ends, let Ctrl-C say what this returns then."""
    _explanations.append(explanation)


def command(examples: str) -> Callable[[Callable[..., None]], Any]:
    """Make a function a command of its name, with examples below its help, and with ``--json`` and ``--quiet``.

    Our own errors and Ctrl-C end it without a traceback. Exit codes: 0 done, 2 an error that the user can act on, 130
    stopped by Ctrl-C. Other exceptions are faults of ours and propagate.
    """

    def make(function: Callable[..., None]) -> Any:
        name = function.__name__
        function = _with_output(function)
        app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        app.command(name, help=COMMANDS[name], epilog=examples)(_ending_well(function))
        return typer.main.get_command(app)

    return make


def _with_output(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how it speaks."""

    @functools.wraps(function)
    def run(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
        speak(as_json=as_json, quiet=quiet)
        function(*args, **kwargs)

    signature = inspect.signature(function, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
        for name, option in OUTPUT.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    return run


def _ending_well(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:

        debug = bool(kwargs.get("debug"))
        _explanations.clear()
        with _one_interrupt():
            try:
                _check_numbers(kwargs)
                with _warnings_as_lines(debug):
                    function(*args, **kwargs)
            except KeyboardInterrupt:
                text = _explanations[-1]() if _explanations else NOTHING_WRITTEN
                _say(f"Stopped. {text}", "yellow")
                raise typer.Exit(INTERRUPTED) from None
            except ClusterpruneError as error:
                if debug:
                    print_traceback(error)
                _say_error(error)
                raise typer.Exit(FAILED) from None

    return run


def _check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse numbers that no computer has room for, or that are none, before they come to where nobody expects them.

    Raises
    ------
    ArgumentError
        If an option is one.
    """
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, float) and not math.isfinite(value):
            raise ArgumentError(f"{option} must be a finite number, but got {option} {value}; give a plain one")
        if isinstance(value, int) and not isinstance(value, bool):
            most = LARGEST.get(name, LARGEST[""])
            if abs(value) > most:
                raise ArgumentError(
                    f"{option} must be at most {most} and at least {-most}, but got {option} {value}; give a number "
                    "in between"
                )


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C stop the command, and none after it disturb what the first one has begun.

    A finger that trembles presses twice. Whoever presses again after some seconds does not want to wait for
    anything, and is let go: every file is put in its place in one step, so that none is left half-written.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    began = 0.0

    def first(_number: int, _frame: FrameType | None) -> None:
        nonlocal began
        began = time.monotonic()
        signal.signal(signal.SIGINT, more)
        raise KeyboardInterrupt

    def more(_number: int, _frame: FrameType | None) -> None:
        if time.monotonic() - began > PATIENCE:
            os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        # On its way out, Python would give the signal back to the system, which ends a process without its exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN if began else signal.default_int_handler)


def _say(text: str, style: str, *, all_speak: bool = False) -> None:

    # Soft wrapping leaves paths and commands whole, to be copied.
    place = console(stderr=True, all_speak=all_speak)
    place.print(Text(hide_passwords(text), style=style), soft_wrap=True)


def _say_error(error: ClusterpruneError) -> None:
    """Say what went wrong, once, of several processes too.

    What all meet with, the main process says, and ends: the launcher then ends the others. One that is still there
    after a while has met with it alone.
    """
    where = ""
    if rank():
        if getattr(error, "__notes__", ()):
            return  # the main process has met with it, and says so
        time.sleep(PATIENCE)
        where = f" in process {rank()}"
    _say(f"Error{where}: {_sentence(str(error))}", "red", all_speak=True)


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
