"""The commands in one place. Nothing heavy is imported before a command runs, so that help is instant."""

import sys
from importlib import metadata
from typing import Annotated

import typer

from clusterprune.cli import compare, compress, demo, evaluate, inspect, reproduce, train, worker

app = typer.Typer(
    name="clusterprune",
    help=(
        "Make a trained convolutional network smaller and faster: find channels that do the same work, keep one "
        "of each kind, and give it the work of the others."
    ),
    epilog="Start with [bold]clusterprune demo[/bold]: embedded data, under two minutes on two processor cores.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, inspect, train, compress, compare, reproduce, worker, evaluate):
    command.register(app)


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
        from clusterprune.files.credentials import print_traceback

        print_traceback(error)
        sys.exit(1)
