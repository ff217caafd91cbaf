"""The commands in one place. Nothing heavy is imported before a command runs, so that help is instant."""

import sys
import time
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from clusterprune.cli.command import COMMANDS, PATIENCE
from clusterprune.cli.console import rank, several
from clusterprune.files.credentials import print_traceback


class Commands(TyperGroup):
    """The commands by name, each imported when it is called: its module has a plain header, and needs torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, in the order of the help."""
        del ctx
        return [*COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Return what the help says of a command."""
        del ctx
        text = COMMANDS.get(cmd_name)
        return None if text is None else TyperCommand(cmd_name, help=text, rich_markup_mode="rich")

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command itself, and its arguments."""
        name, found, rest = super().resolve_command(ctx, args)
        if found is not None and name is not None:
            found = getattr(import_module(f"clusterprune.cli.{name}"), name)
        return name, found, rest


app = typer.Typer(
    name="clusterprune",
    cls=Commands,
    help=(
        "Make a trained convolutional network smaller and faster: find channels that do the same work, keep one "
        "of each kind, and give it the work of the others."
    ),
    epilog="Start with [bold]clusterprune demo[/bold]: embedded data, under two minutes on two processor cores.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"clusterprune {metadata.version('clusterprune')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:  # between two commands' own handlers there is nothing to say
        sys.exit(130)
    except Exception as error:  # a fault of ours: all of it is shown, but for passwords
        if several():
            # What this process meets with may be the end of another: then the launcher ends this one meanwhile.
            time.sleep(PATIENCE if rank() == 0 else 2 * PATIENCE)
        print_traceback(error)
        sys.exit(1)
