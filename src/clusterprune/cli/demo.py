"""``clusterprune demo``: the whole library in a minute, on data that comes along."""

# ruff: noqa: ARG001  (a command reads its options from the context, and `debug` is read by the wrapper)

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clusterprune.cli import options
from clusterprune.cli.command import command
from clusterprune.cli.console import milliseconds, percent, show, table
from clusterprune.cli.progress import Display
from clusterprune.studies.demo import DemoResult, demonstrate
from clusterprune.tables import count
from clusterprune.tasks import percentages

EXAMPLES = """[bold]Examples[/bold]

clusterprune demo

clusterprune demo --keep-macs 0.3 --out runs/third
"""


@command(EXAMPLES)
def demo(
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the result; where it exists, the next free number is added.",
            rich_help_panel="Run",
        ),
    ] = Path("runs/demo"),
    keep_macs: Annotated[
        float,
        typer.Option(
            "--keep-macs", metavar="SHARE", help="Share of the multiply-adds to keep.", rich_help_panel="Budget"
        ),
    ] = 0.45,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, metavar="N", help="Length of the training.", rich_help_panel="Run")
    ] = 10,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Train, compress three ways, and compare."""
    with Display() as display:
        display.line("ResNet-20 on scikit-learn's handwritten digits: first it is trained, then compressed.")
        result = demonstrate(out, keep_macs=keep_macs, epochs=epochs, seed=seed, progress=display)
    rows = [{"name": row.name, "seconds": row.seconds, **row.measured.to_dict()} for row in result.rows]
    show(
        {"folder": str(result.folder), "rows": rows},
        _table(result),
        "No row was trained after the cut. All numbers are measured on the networks themselves.",
        f"Written to {result.folder}. Try next:",
        f"  clusterprune evaluate {result.folder}",
        f"  clusterprune compress --model resnet20 --weights {result.folder}/model.safetensors --data digits "
        "--image-size 8 --keep-macs 0.3 --out runs/third",
        "  clusterprune inspect --model resnet20",
    )


def _table(result: DemoResult) -> Table:

    baseline = result.rows[0].measured
    batch, (deciding, worth) = baseline.latency_batch, next(iter(percentages(baseline.metrics).items()))
    made = table("", ("", "MACs", "params", worth, "drop", f"latency ({batch})", "seconds"))
    made.columns[0].no_wrap = True
    for row in result.rows:
        values = row.measured
        change = (values.metrics[deciding] or 0.0) - (baseline.metrics[deciding] or 0.0)
        made.add_row(
            row.name,
            count(values.macs),
            count(values.params),
            percent(values.metrics[deciding]),
            "" if values is baseline else f"{change:+.2f}",
            milliseconds(values.latency_ms),
            f"{row.seconds:.1f}",
            style="bold" if row is result.rows[1] else None,
        )
    return made
