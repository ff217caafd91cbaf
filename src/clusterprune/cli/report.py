"""``clusterprune report``: what runs have found, as a page to look at, as single figures, or as tables."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

from pathlib import Path
from typing import Annotated

import typer

from clusterprune.cli import options
from clusterprune.cli.command import command
from clusterprune.cli.console import show
from clusterprune.cli.progress import Display
from clusterprune.errors import ArgumentError
from clusterprune.report import DISPLAYS, REPORT_NAME, displays, opened, write_page
from clusterprune.report.export import Kind, write_figures, write_tables

EXAMPLES = """[bold]Examples[/bold]

clusterprune report runs/half

clusterprune report runs/half runs/third runs/icp --out runs/compared.html

clusterprune report runs/half --only widths,training --svg figures/ --csv tables/
"""


@command(EXAMPLES)
def report(
    *,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs; of several, one page compares them.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The page; it may be there, and is then replaced.",
            rich_help_panel="Page",
            show_default=f"{REPORT_NAME} in the run's folder; of several runs, here",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help=f"For the figures and tables below: {', '.join(DISPLAYS)}.",
            rich_help_panel="Figures",
            show_default="all",
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each figure there as SVG; needs Chromium.", rich_help_panel="Figures"),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each figure there as PNG; needs Chromium.", rich_help_panel="Figures"),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the numbers of each figure there as CSV.", rich_help_panel="Figures"),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Read the files of runs, and write a page that needs no network."""
    found = opened(runs)
    shown = displays(found)
    if only is not None:
        names = [name.strip() for name in only.split(",")]
        if unknown := [name for name in names if name not in DISPLAYS]:
            raise ArgumentError(f"only={unknown[0]!r} is no display; choose from {', '.join(DISPLAYS)}")
        shown = [display for display in shown if display.name in names]
    path = (out or (runs[0] / REPORT_NAME if len(runs) == 1 else Path(REPORT_NAME))).expanduser()
    written = [write_page(found, path)]
    if csv is not None:
        written += write_tables(shown, csv.expanduser())
    kinds: tuple[tuple[Kind, Path | None], ...] = (("svg", svg), ("png", png))
    for kind, folder in kinds:
        if folder is not None:
            with Display() as display:
                written += write_figures(shown, folder.expanduser(), kind, display)
    show({"command": "report", "written": [str(one) for one in written]}, *(f"Written: {one}" for one in written))
